"""One MNTP step: seconds, memory and where they go, beside llm2vec 0.2.3 and transformers computing all logits."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import llm2vec_env
from benchmarks.frame import Findings
from benchmarks.peers.condition import CPU_SHAPES, CUDA_SHAPES, TINY, TUNES, Condition, make
from benchmarks.peers.worker import DiedError, Worker
from bothways import hardware

OURS, ALL_LOGITS, LLM2VEC, FLOOR = "bothways", "transformers", "llm2vec", "matmuls"
SAME = {ALL_LOGITS: 1e-5, LLM2VEC: 1e-4}
"""Relative difference of a peer's loss to ours on one masked batch, in float32, that rounding may explain."""
SAME_BFLOAT16 = 1e-2
KINDS = {"cpu": ("sdpa", "eager"), "cuda": ("sdpa",)}
"""Attention that peers are tried with, their default first."""
FEWEST_ROUNDS = 2
MEMORY_AFTER = 2
"""The round whose end is the end of a worker's third step: the warm-up is round 0."""


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
    for condition in conditions(options):
        with tempfile.TemporaryDirectory() as folder:
            make(condition, Path(folder))
            ready, found, parts = run(condition, variants(condition, peers(options)), options.rounds, Path(folder))
        rows += [{"condition": condition.name, **row} for row in found]
        observed[condition.name] = summary(condition, ready, found, parts)
        ratios |= compared(condition, observed[condition.name])
        say(json.dumps({condition.name: observed[condition.name]["seconds"]}))
    threads = {"threads": 1} if options.device == "cpu" else {}
    return Findings(rows, ratios, observed, hardware=hardware.describe() | threads)


def peers(options: argparse.Namespace) -> list[str]:
    """Who is measured beside us. Exits if llm2vec is, and its environment is not there."""
    # On a GPU its environment would have to be built there, with another torch.
    default = [ALL_LOGITS] if options.device == "cuda" else [LLM2VEC, ALL_LOGITS]
    wanted = default if options.peers is None else list(options.peers)
    if LLM2VEC in wanted and not llm2vec_env.BUILT.exists():
        raise SystemExit(
            "benchmarks mntp: the environment of llm2vec is not there. "
            "Build it with `python -m benchmarks.llm2vec_env`, or name the --peers without it."
        )
    return wanted


def conditions(options: argparse.Namespace) -> list[Condition]:
    """Shapes times tunings. Exits for a shape or a number of rounds that there is not."""
    shapes = CUDA_SHAPES if options.device == "cuda" else CPU_SHAPES
    names = list(shapes) if options.shapes is None else options.shapes
    if unknown := [name for name in names if name not in shapes]:
        raise SystemExit(f"benchmarks mntp: no shape {unknown[0]} on {options.device}. Use {', '.join(shapes)}.")
    if options.rounds < FEWEST_ROUNDS:
        raise SystemExit(
            f"benchmarks mntp: --rounds {options.rounds}: the memory is read after three steps, so 2 or more."
        )
    batch = options.batch or (32 if options.device == "cuda" else 4)
    changes = {**TINY, "head_dim": 10, "intermediate_size": 56, "vocab_size": 531} if options.tiny else {}
    return [
        Condition(f"{name}-{tune}", {**shapes[name], **changes}, tune, batch, options.tokens, options.device)
        for name in names
        for tune in options.tune
    ]


def variants(condition: Condition, wanted: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Name -> who, and with which attention. Peers run with every kind worth trying; bothways chooses its own."""
    found = {OURS: (OURS, "auto"), FLOOR: (FLOOR, "auto")}
    return found | {f"{peer}, {kind}": (peer, kind) for peer in wanted for kind in KINDS[condition.device]}


def run(
    condition: Condition, wanted: Mapping[str, tuple[str, str]], rounds: int, folder: Path
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    """What the workers said when they were ready, every step of each, and the parts of one of ours."""
    ready: dict[str, dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    parts: dict[str, Any] = {}
    # On a GPU each keeps the memory it once had, and two do not fit; its clock needs no interleaving.
    groups = [[name] for name in wanted] if condition.device == "cuda" else [list(wanted)]
    for group in groups:
        workers = {name: Worker(name, *wanted[name], condition, folder) for name in group}
        try:
            ready |= {name: worker.ready() for name, worker in workers.items()}
            same_work(condition, ready)
            for number in range(rounds + 1):
                for name in turn(list(workers), number):
                    rows.append({"variant": name, "round": number, **workers[name].step()})
                    say(f"{condition.name} round {number}: {name} {rows[-1]['seconds']:.2f} s")
                if number == 1:
                    for name in slower(rows, wanted):
                        workers.pop(name).stop()
            if OURS in workers:
                parts = whole(workers[OURS].step("profile"))
        except DiedError as error:
            raise SystemExit(f"benchmarks mntp: {error}") from None
        finally:
            for worker in workers.values():
                worker.stop()
    return ready, rows, parts


def whole(answer: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a profiled step, and what is between them, so that they add up to it."""
    seconds = answer["seconds"] - sum(part["seconds"] for part in answer["parts"].values())
    return {**answer["parts"], "between operations": {"seconds": seconds, "multiplying": 0.0}}


def turn(names: list[str], number: int) -> Iterator[str]:
    """The names, beginning with another one in every round."""
    start = number % len(names)
    yield from names[start:] + names[:start]


def slower(rows: Sequence[Mapping[str, Any]], wanted: Mapping[str, tuple[str, str]]) -> list[str]:
    """Of variants of one peer all but the fastest in the first timed round."""
    taken = {row["variant"]: row["seconds"] for row in rows if row["round"] == 1}
    best: dict[str, float] = {}
    for name, seconds in taken.items():
        best[wanted[name][0]] = min(seconds, best.get(wanted[name][0], seconds))
    return [name for name, seconds in taken.items() if seconds > best[wanted[name][0]]]


def same_work(condition: Condition, ready: Mapping[str, Mapping[str, Any]]) -> None:
    """Exits unless all compute one loss on one batch, and train as many weights, so that the work is the same."""
    if OURS not in ready:
        return
    ours = ready[OURS]
    for name, facts in ready.items():
        peer = name.split(",")[0]
        if peer not in SAME:
            continue
        allowed = SAME[peer] if condition.dtype == "float32" else SAME_BFLOAT16
        difference = abs(facts["loss"] - ours["loss"]) / ours["loss"]
        if not difference <= allowed:
            raise SystemExit(
                f"benchmarks mntp: {condition.name}: {name} computes the loss {facts['loss']:.6f} where bothways "
                f"computes {ours['loss']:.6f} on the same masked batch: this is not the same work."
            )
        if facts["trained"] != ours["trained"]:
            raise SystemExit(
                f"benchmarks mntp: {condition.name}: {name} trains {facts['trained']:,} weights where bothways trains "
                f"{ours['trained']:,}: this is not the same work."
            )


def summary(
    condition: Condition,
    ready: Mapping[str, Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    parts: Mapping[str, Any],
) -> dict[str, Any]:
    """Medians over the timed rounds, and what follows from them."""
    kept = list(dict.fromkeys(row["variant"] for row in rows if row["round"] == MEMORY_AFTER))
    timed = [row for row in rows if row["round"] > 0 and row["variant"] in kept]
    floors = [row["floor"] for row in timed if row["variant"] == FLOOR]
    floor = {part: statistics.median(one[part] for one in floors) for part in floors[0]}
    rate = floor.pop("large")
    operations = ready[FLOOR]["operations"]
    medians = {
        name: statistics.median(row["seconds"] for row in timed if row["variant"] == name)
        for name in kept
        if name != FLOOR
    }
    return {
        "seconds": medians,
        "memory": {
            row["variant"]: row["memory"] for row in timed if row["round"] == MEMORY_AFTER and row["variant"] != FLOOR
        },
        "attention tried, seconds": {
            row["variant"]: row["seconds"] for row in rows if row["round"] == 1 and row["variant"] != FLOOR
        },
        "floor, seconds": floor,
        "share of the floor": {name: sum(floor.values()) / seconds for name, seconds in medians.items()},
        "rate of a large product": rate,
        "share of that rate": {name: sum(operations.values()) / s / rate for name, s in medians.items()},
        "operations": operations,
        "parts of a bothways step": parts,
        "shape": dict(condition.shape),
        "batch": [condition.batch, condition.tokens],
        "dtype": condition.dtype,
        "ready": {name: dict(facts) for name, facts in ready.items() if name != FLOOR},
    }


def compared(condition: Condition, found: Mapping[str, Any]) -> dict[str, float]:
    """The ratios that carry a target: over llm2vec on CPU, over all logits on a GPU."""
    peer = ALL_LOGITS if condition.device == "cuda" else LLM2VEC
    ratios = {}
    for kind, figures in (("time", found["seconds"]), ("memory", found["memory"])):
        for name, value in figures.items():
            if name.split(",")[0] == peer:
                ratios[f"mntp/{condition.name}/{kind}/{peer}"] = round(value / figures[OURS], 3)
    return ratios


def say(line: str) -> None:
    """Progress, on stderr."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)
