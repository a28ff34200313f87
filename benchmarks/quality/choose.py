"""Settings chosen on the dev splits: the same grid for every side, stage by stage."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from benchmarks.frame import say
from benchmarks.quality.bench import Bench, Step, chain
from benchmarks.quality.settings import AFTER_MNTP, AFTER_SIMCSE, CHAINS, CHOICE_SEED, GRID, LAST, Chosen


def choose(bench: Bench, side: str, steps: Mapping[str, int] | None) -> tuple[Chosen, list[dict[str, Any]]]:
    """The settings with the best mean over the dev tasks, and every one that was tried.

    MNTP and SimCSE are chosen together, by the mean after SimCSE, because MNTP alone makes no good vectors; then the
    supervised stage. `steps` of each stage are of a side whose batches do not decide them.
    """
    rows: list[dict[str, Any]] = []

    def tried(chosen: Chosen, stage: str) -> float:
        step: Step = chain(side, CHOICE_SEED, chosen, steps)[stage]
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
