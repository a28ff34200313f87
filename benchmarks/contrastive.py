"""One contrastive step on mixed lengths: seconds and memory beside sentence-transformers' trainer and llm2vec's."""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.beside import KINDS, LLM2VEC, check, compared, run, summary, variants
from benchmarks.frame import Findings, say
from benchmarks.peers.condition import CPU_SHAPES, TINY, TUNES
from benchmarks.peers.triplets import Triplets
from bothways import hardware

SENTENCE_TRANSFORMERS = "sentence-transformers"
PEERS = (SENTENCE_TRANSFORMERS, LLM2VEC)
LARGE = CPU_SHAPES["vocab-32k"]
SMALL = {**LARGE, "vocab_size": 8192, "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 4, "intermediate_size": 688}
TOKENS = 512
MINI_BATCH = 32
"""Rows at once of the cached loss: its default."""


@dataclass(frozen=True)
class Step:
    """What is measured once for every tuning."""

    shape: dict[str, Any]
    batch: int
    cached: bool
    peers: tuple[str, ...]
    target: bool = True
    """Whether its ratios carry one."""


STEPS = {
    "plain-16": Step(LARGE, 16, False, PEERS),
    "plain-64": Step(LARGE, 64, False, PEERS),
    "cached-64": Step(LARGE, 64, True, (SENTENCE_TRANSFORMERS,)),
    **{
        f"small-cached-{batch}": Step(SMALL, batch, True, (SENTENCE_TRANSFORMERS,), target=False)
        for batch in (64, 256, 1024)
    },
}
LESS = 4
"""By what --tiny divides batches."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """How much is measured."""
    parser.add_argument("--rounds", type=int, default=3, help="timed steps of every variant")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS), help="kind of step, and its batch")
    parser.add_argument("--tune", nargs="+", choices=TUNES, default=["full"], help="what is trained")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS), help="who is measured beside us")
    parser.add_argument("--tiny", action="store_true", help="narrow models: the figures mean nothing, but it runs")


def measure(options: argparse.Namespace) -> Findings:
    """Every condition, its variants interleaved."""
    check("contrastive", options.rounds, options.peers)
    rows: list[dict[str, Any]] = []
    observed: dict[str, Any] = {}
    ratios: dict[str, float] = {}
    # Found out in a peer's first condition, a small one: larger ones have no memory for both.
    kinds = dict.fromkeys(options.peers, KINDS["cpu"])
    for name, tune in ((name, tune) for tune in options.tune for name in options.steps):
        step, condition = STEPS[name], conditioned(name, tune, tiny=options.tiny)
        tried = {peer: kinds[peer] for peer in step.peers if peer in kinds}
        with tempfile.TemporaryDirectory() as folder:
            condition.make(Path(folder))
            ready, found, parts = run(condition, variants(tried), options.rounds, Path(folder))
        rows += [{"condition": condition.name, **row} for row in found]
        figures = {**summary(condition, ready, found, parts), **condition.padding()}
        kinds |= {peer: (kind,) for peer, _, kind in (kept.partition(", ") for kept in figures["seconds"]) if kind}
        observed[condition.name] = figures
        if step.target:
            ratios |= compared(condition, figures, step.peers)
        say(json.dumps({condition.name: figures["seconds"]}))
    return Findings(rows, ratios, observed, hardware=hardware.describe() | {"threads": 1})


def conditioned(name: str, tune: str, *, tiny: bool) -> Triplets:
    """The step of that name, with a narrow model and less in a batch if `tiny`."""
    step, less = STEPS[name], LESS if tiny else 1
    changes = {**TINY, "head_dim": 10, "intermediate_size": 56, "vocab_size": 531} if tiny else {}
    mini_batch = MINI_BATCH // less if step.cached else 0
    return Triplets(f"{name}-{tune}", {**step.shape, **changes}, tune, step.batch // less, TOKENS, "cpu", mini_batch)
