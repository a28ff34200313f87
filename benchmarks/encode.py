"""One pass of `encode` over texts of mixed lengths: seconds and memory beside sentence-transformers and llm2vec."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.beside import KINDS, LLM2VEC, check, compared, run, summary, variants
from benchmarks.frame import Findings, say
from benchmarks.peers.condition import CPU_SHAPES, CUDA_SHAPES, LLAMA, TINY
from benchmarks.peers.passages import Passages
from bothways import hardware

SENTENCE_TRANSFORMERS = "sentence-transformers"
PEERS = (SENTENCE_TRANSFORMERS, LLM2VEC)
TOKENS = 512
VOCABULARY = 8192
"""Of the embedded decoder's tokenizer."""
TEXTS = {"log-normal": 1000, "uniform": 300, "short": 2000}
"""Lengths -> how many texts have them."""
RUNS: dict[str, dict[str, Any]] = {
    "log-normal-fp32": {},
    "log-normal-bf16": {"number": "bfloat16"},
    "log-normal-auto": {"number": "auto"},
    "uniform-fp32": {"lengths_are": "uniform"},
    "uniform-bf16": {"lengths_are": "uniform", "number": "bfloat16"},
    "short-fp32": {"lengths_are": "short"},
    "short-bf16": {"lengths_are": "short", "number": "bfloat16"},
    # What is done besides: tokenising, sorting, padding, pooling.
    "besides": {"blank": True},
}
LESS = 20
"""By what --tiny divides numbers of texts."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """How much is measured."""
    parser.add_argument("--rounds", type=int, default=2, help="timed passes of every variant")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS), help="lengths and number format")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS), help="who is measured beside us")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: 0.6B and 1B shapes, bfloat16")
    parser.add_argument("--tiny", action="store_true", help="narrow models: the figures mean nothing, but it runs")


def measure(options: argparse.Namespace) -> Findings:
    """Every condition, its variants interleaved."""
    check("encode", options.rounds, options.peers)
    rows: list[dict[str, Any]] = []
    observed: dict[str, Any] = {}
    ratios: dict[str, float] = {}
    for condition in conditions(options):
        with tempfile.TemporaryDirectory() as folder:
            condition.make(Path(folder))
            tried = dict.fromkeys(options.peers, KINDS[options.device])
            ready, found, parts = run(condition, variants(tried), options.rounds, Path(folder))
        rows += [{"condition": condition.name, **row} for row in found]
        for facts in ready.values():
            facts.pop("sample", None)
        observed[condition.name] = {**summary(condition, ready, found, parts), **condition.padding()}
        ratios |= compared(condition, observed[condition.name], options.peers)
        say(json.dumps({condition.name: observed[condition.name]["seconds"]}))
    threads = {"threads": 1} if options.device == "cpu" else {}
    return Findings(rows, ratios, observed, hardware=hardware.describe() | threads)


def conditions(options: argparse.Namespace) -> list[Passages]:
    """All that were asked for; on a GPU log-normal lengths in bfloat16 on every shape."""
    if options.device == "cuda":
        runs = [(name, shape, "log-normal-bf16") for name, shape in CUDA_SHAPES.items()]
    else:
        runs = [(name, CPU_SHAPES["vocab-32k"], name) for name in options.runs]
    found = []
    for name, shape, settings in runs:
        given = RUNS[settings]
        texts = TEXTS[given.get("lengths_are", "log-normal")]
        changes = {"vocab_size": VOCABULARY}
        if options.tiny:
            changes |= {**TINY, "kind": LLAMA["kind"], "head_dim": 10, "intermediate_size": 56}
            texts = max(texts // LESS, 40)
        found.append(Passages(name, {**shape, **changes}, "full", texts, TOKENS, options.device, **given))
    return found
