"""The embedded decoder: held-out bits per byte, and what its causal states are worth as vectors (STS-B dev)."""

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
    """Bits per byte as recorded when it was pre-trained; Spearman of mean-pooled causal states, measured now."""
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
    embedded = convert("embedded", direction="causal")
    yield {"decoder": "embedded, causal", "seed": None, **score(embedded, task)}
    for seed in range(SEEDS):
        yield {"decoder": "random weights", "seed": seed, **score(random_weights(embedded, seed), task)}
    for peer in peers:
        yield {"decoder": f"{peer.name}, causal", "seed": None, **score(convert(peer, direction="causal"), task)}
