"""The embedded decoder: held-out bits per byte, and what its untrained states are worth as vectors (STS-B dev)."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.frame import Findings

SEEDS = 5


def arguments(parser: argparse.ArgumentParser) -> None:
    """Where the labelled pairs and the peers are."""
    parser.add_argument("--data", type=Path, required=True, help="folder that holds sts-b/dev.jsonl.gz")
    parser.add_argument("--peer", type=Path, nargs="*", default=[], help="folders of other decoders")


def measure(options: argparse.Namespace) -> Findings:
    """Bits per byte as recorded when it was pre-trained; Spearman of mean-pooled states, measured now."""
    from bothways.loading import EMBEDDED

    record = json.loads((EMBEDDED / "pretraining.json").read_text(encoding="utf-8"))
    path = next(path for path in options.data.glob("sts-b/*dev*.jsonl*"))
    rows = list(_similarity(path, options.peer))
    figures: dict[str, list[float]] = {}
    for row in rows:
        figures.setdefault(row["decoder"], []).append(row["spearman"])
    return Findings(
        rows,
        observed={
            "held_out_bits_per_byte": record["held_out_bits_per_byte"],
            "spearman, mean over seeds": {name: statistics.fmean(found) for name, found in figures.items()},
            "pretraining": record,
        },
    )


def _similarity(path: Path, peers: list[Path]) -> Iterator[Mapping[str, Any]]:
    from bothways import convert
    from bothways.evaluation import FLOOR, TfIdf, read_similarity, score
    from bothways.evaluation.baselines import random_weights

    task = read_similarity(path)
    yield {"decoder": FLOOR, "seed": None, **score(TfIdf.of(task), task)}
    for seed in range(SEEDS):
        fresh = random_weights(convert("embedded", direction="causal"), seed)
        yield {"decoder": "random weights, causal", "seed": seed, **score(fresh, task)}
    for name in ("embedded", *peers):
        for direction in ("causal", "bidirectional"):
            encoder = convert(name, direction=direction)
            yield {"decoder": f"{Path(name).name}, {direction}", "seed": None, **score(encoder, task)}
