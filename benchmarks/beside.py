"""Variants that do the same work, beside each other: a process each, their steps in turn, and what those took."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import llm2vec_env
from benchmarks.frame import say
from benchmarks.peers.condition import Condition
from benchmarks.peers.worker import DiedError, Worker

OURS, LLM2VEC, FLOOR = "bothways", "llm2vec", "matmuls"
SAME, SAME_ELSEWHERE, SAME_BFLOAT16 = 1e-5, 1e-4, 1e-2
"""Relative difference of a peer's loss to ours on one batch that rounding may explain: in float32, in float32 with
another version of transformers, in bfloat16."""
AFTER_UPDATE = 100
"""How many times as much it may explain once each variant has updated its weights by itself."""
KINDS = {"cpu": ("sdpa", "eager"), "cuda": ("sdpa",)}
"""Attention that peers are tried with, their default first."""
FEWEST_ROUNDS = 2
MEMORY_AFTER = 2
"""The round whose end is the end of a worker's third step: the warm-up is round 0."""

Variants = Mapping[str, tuple[str, str]]
"""Name -> who, and with which attention."""


def check(benchmark: str, rounds: int, peers: Sequence[str]) -> None:
    """Exits for too few rounds, or if llm2vec is to be measured and its environment is not there."""
    if rounds < FEWEST_ROUNDS:
        raise SystemExit(
            f"benchmarks {benchmark}: --rounds {rounds}: the memory is read after three steps, so 2 or more."
        )
    if LLM2VEC in peers and not llm2vec_env.BUILT.exists():
        raise SystemExit(
            f"benchmarks {benchmark}: the environment of llm2vec is not there. "
            "Build it with `python -m benchmarks.llm2vec_env`, or name the --peers without it."
        )


def variants(kinds: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, str]]:
    """Us, the floor, and every peer with each of its kinds of attention; bothways chooses its own."""
    found = {OURS: (OURS, "auto"), FLOOR: (FLOOR, "auto")}
    return found | {f"{peer}, {kind}": (peer, kind) for peer, tried in kinds.items() for kind in tried}


def run(
    condition: Condition, wanted: Variants, rounds: int, folder: Path
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
                if condition.one_batch and number <= (1 if condition.tune == "full" else 0):
                    # What is timed computes the loss that was told before, and updates the weights alike: all but
                    # adapters, which have dropout, without effect until their first update.
                    told = {row["variant"]: {**ready[row["variant"]], **row} for row in rows if row["round"] == number}
                    same_work(condition, told, slack=AFTER_UPDATE if number else 1)
                if number == 1:
                    for name in slower(rows, wanted):
                        workers.pop(name).stop()
            if OURS in workers:
                parts = whole(workers[OURS].step("profile"))
        except DiedError as error:
            raise SystemExit(f"benchmarks {condition.work}: {error}") from None
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


def slower(rows: Sequence[Mapping[str, Any]], wanted: Variants) -> list[str]:
    """Of variants of one peer all but the fastest in the first timed round."""
    taken = {row["variant"]: row["seconds"] for row in rows if row["round"] == 1}
    best: dict[str, float] = {}
    for name, seconds in taken.items():
        best[wanted[name][0]] = min(seconds, best.get(wanted[name][0], seconds))
    return [name for name, seconds in taken.items() if seconds > best[wanted[name][0]]]


def same_work(condition: Condition, ready: Mapping[str, Mapping[str, Any]], slack: float = 1) -> None:
    """Exits unless all compute the same, and train as many weights, so that the work is the same.

    `slack`: how many times the difference that rounding may explain is allowed.
    """
    if OURS not in ready:
        return
    ours = ready[OURS]
    for name, facts in ready.items():
        peer = name.split(",")[0]
        if peer in (OURS, FLOOR):
            continue
        allowed = SAME_ELSEWHERE if peer == LLM2VEC else SAME
        allowed = allowed if condition.dtype == "float32" else SAME_BFLOAT16
        if unlike := condition.unlike(facts, ours, slack * allowed):
            raise SystemExit(f"benchmarks {condition.work}: {condition.name}: {name} {unlike}: not the same work.")
        if facts["trained"] != ours["trained"]:
            raise SystemExit(
                f"benchmarks {condition.work}: {condition.name}: {name} trains {facts['trained']:,} weights where "
                f"bothways trains {ours['trained']:,}: this is not the same work."
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


def compared(condition: Condition, found: Mapping[str, Any], peers: Sequence[str]) -> dict[str, float]:
    """How many times as much time and memory each of those peers took."""
    ratios = {}
    for kind, figures in (("time", found["seconds"]), ("memory", found["memory"])):
        for name, value in figures.items():
            if (peer := name.split(",")[0]) in peers:
                ratios[f"{condition.work}/{condition.name}/{kind}/{peer}"] = round(value / figures[OURS], 3)
    return ratios
