"""The demo's table: held-out retrieval after every step, beside the causal decoder, random weights and tf-idf."""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.frame import Findings

FIGURE = "ndcg@10"
LAST, CAUSAL, FLOOR = "+ supervised", "causal decoder", "tf-idf"


def arguments(parser: argparse.ArgumentParser) -> None:
    """`--done DIR`: the folder of a demo that ran on this machine just now, instead of running it again."""
    parser.add_argument("--done", type=Path, help="folder of `bothways demo --out`, to read instead of running it")


def measure(options: argparse.Namespace) -> Findings:
    """Run the demo, or read what it left."""
    from bothways import demo

    if options.done is not None:
        return replace(read(options.done), command="bothways demo")
    with tempfile.TemporaryDirectory() as folder:
        return read(demo.run(Path(folder) / "demo"))


def read(folder: Path) -> Findings:
    """The findings in a demo's folder."""
    found = json.loads((folder / "demo.json").read_text(encoding="utf-8"))
    rows = found.pop("rows")
    by_step = {row["step"]: row[FIGURE] for row in rows}
    compared = {
        f"{FIGURE} over {name}": round(by_step[LAST] / by_step[name], 3)
        for name in (CAUSAL, FLOOR)
        if name in by_step and LAST in by_step
    }
    kept = ("documentation", "recipe", "seconds", "peak_memory_bytes", "answers")
    return Findings(rows, observed=compared | {name: found[name] for name in kept}, hardware=found["hardware"])
