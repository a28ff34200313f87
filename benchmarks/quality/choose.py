"""Settings chosen on the dev splits: the same grid for every side, stage by stage."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.frame import say
from benchmarks.quality.bench import Bench, Step, chain
from benchmarks.quality.settings import (
    AFTER_MNTP,
    AFTER_SIMCSE,
    CHAINS,
    CHOICE_SEED,
    DEFAULT,
    GRID,
    LAST,
    OURS,
    ST,
    Chosen,
)


def choose(bench: Bench, side: str, ours: Chosen | None) -> tuple[Chosen, list[dict[str, Any]]]:
    """The settings with the best mean over the dev tasks, and every one that was tried.

    MNTP and SimCSE are chosen together, by the mean after SimCSE, because MNTP alone makes no good vectors; then the
    supervised stage. `ours` are our settings, whose wall time a side without steps is given.
    """
    given = None if side != ST else seconds(bench, CHOICE_SEED, ours or DEFAULT)
    rows: list[dict[str, Any]] = []

    def tried(chosen: Chosen, stage: str) -> float:
        step: Step = chain(side, CHOICE_SEED, chosen, given)[stage]
        found = bench.scores(step, "dev")
        told = {name: dict(values) for name, values in chosen.items()}
        rows.append({"stage": stage, "settings": told, "mean": round(statistics.fmean(found.values()), 4), **found})
        return statistics.fmean(found.values())

    firsts = [{"mntp": mntp} for mntp in GRID["mntp"]] if AFTER_MNTP in CHAINS[side] else [{}]
    pairs: list[Chosen] = [{**first, "simcse": simcse} for first in firsts for simcse in GRID["simcse"]]
    best = max(pairs, key=lambda chosen: tried(chosen, AFTER_SIMCSE))
    alone = [{**best, "supervised": supervised} for supervised in GRID["supervised"]]
    best = max(alone, key=lambda chosen: tried(chosen, LAST))
    say(f"{bench.decoder.name}: {side} with {best}")
    return best, rows


def seconds(bench: Bench, seed: int, ours: Chosen) -> dict[str, float]:
    """Stage -> wall time that a side without MNTP is given for it: ours for MNTP and SimCSE, then for the pairs."""
    took = {stage: bench.training(step)["seconds"] for stage, step in chain(OURS, seed, ours).items() if _taught(stage)}
    return {AFTER_SIMCSE: took[AFTER_MNTP] + took[AFTER_SIMCSE], LAST: took[LAST]}


def _taught(stage: str) -> bool:
    return stage in (AFTER_MNTP, AFTER_SIMCSE, LAST)
