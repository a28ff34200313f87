"""One MNTP step: seconds, memory and where they go, beside llm2vec 0.2.3 and transformers computing all logits."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.beside import KINDS, LLM2VEC, check, compared, run, summary, variants
from benchmarks.frame import Findings, say
from benchmarks.peers.condition import CPU_SHAPES, CUDA_SHAPES, TINY, TUNES
from benchmarks.peers.masked import Masked
from bothways import hardware

ALL_LOGITS = "transformers"


def arguments(parser: argparse.ArgumentParser) -> None:
    """How much is measured, and where."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: 0.6B and 1B shapes in bfloat16")
    parser.add_argument("--rounds", type=int, default=3, help="timed steps of every variant")
    parser.add_argument("--batch", type=int, default=None, help="rows of one step; 4, or 32 on cuda")
    parser.add_argument("--tokens", type=int, default=512, help="tokens of one row")
    parser.add_argument("--shapes", nargs="+", default=None, help=f"of {', '.join([*CPU_SHAPES, *CUDA_SHAPES])}")
    parser.add_argument("--tune", nargs="+", choices=TUNES, default=TUNES, help="what is trained")
    parser.add_argument(
        "--peers", nargs="*", choices=(LLM2VEC, ALL_LOGITS), default=None, help="both, on cuda transformers alone"
    )
    parser.add_argument("--tiny", action="store_true", help="narrow models: the figures mean nothing, but it runs")


def measure(options: argparse.Namespace) -> Findings:
    """Every condition, its variants interleaved."""
    rows: list[dict[str, Any]] = []
    observed: dict[str, Any] = {}
    ratios: dict[str, float] = {}
    kinds = dict.fromkeys(peers(options), KINDS[options.device])
    for condition in conditions(options):
        with tempfile.TemporaryDirectory() as folder:
            condition.make(Path(folder))
            ready, found, parts = run(condition, variants(kinds), options.rounds, Path(folder))
        rows += [{"condition": condition.name, **row} for row in found]
        observed[condition.name] = summary(condition, ready, found, parts)
        # Targets are over llm2vec on CPU, over all logits on a GPU.
        target = ALL_LOGITS if options.device == "cuda" else LLM2VEC
        ratios |= compared(condition, observed[condition.name], [target])
        say(json.dumps({condition.name: observed[condition.name]["seconds"]}))
    threads = {"threads": 1} if options.device == "cpu" else {}
    return Findings(rows, ratios, observed, hardware=hardware.describe() | threads)


def peers(options: argparse.Namespace) -> list[str]:
    """Who is measured beside us. Exits if llm2vec is, and its environment is not there."""
    # On a GPU its environment would have to be built there, with another torch.
    default = [ALL_LOGITS] if options.device == "cuda" else [LLM2VEC, ALL_LOGITS]
    wanted = default if options.peers is None else list(options.peers)
    check("mntp", options.rounds, wanted)
    return wanted


def conditions(options: argparse.Namespace) -> list[Masked]:
    """Shapes times tunings. Exits for a shape that there is not."""
    shapes = CUDA_SHAPES if options.device == "cuda" else CPU_SHAPES
    names = list(shapes) if options.shapes is None else options.shapes
    if unknown := [name for name in names if name not in shapes]:
        raise SystemExit(f"benchmarks mntp: no shape {unknown[0]} on {options.device}. Use {', '.join(shapes)}.")
    batch = options.batch or (32 if options.device == "cuda" else 4)
    changes = {**TINY, "head_dim": 10, "intermediate_size": 56, "vocab_size": 531} if options.tiny else {}
    return [
        Masked(f"{name}-{tune}", {**shapes[name], **changes}, tune, batch, options.tokens, options.device)
        for name in names
        for tune in options.tune
    ]
