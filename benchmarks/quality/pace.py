"""How many steps sentence-transformers does in the time that our stages take: measured once, before anything else."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.frame import say
from benchmarks.quality.bench import Bench, Step, chain
from benchmarks.quality.cells import key_of
from benchmarks.quality.settings import AFTER_MNTP, AFTER_SIMCSE, CHAINS, CHOICE_SEED, GRID, LAST, OURS, ST, Chosen

PACED = 24
"""Steps of theirs that are timed."""
ANY: Chosen = {name: values[0] for name, values in GRID.items()}
"""Settings with which it is measured; time does not depend on them."""


def pace(bench: Bench) -> dict[str, dict[str, float]]:
    """Stage -> the wall time of ours (of MNTP and SimCSE together for SimCSE), that of a step of theirs, their steps.

    The one thing in this benchmark that depends on what else the machine does. Kept with the cells.
    """
    ours = chain(OURS, CHOICE_SEED, ANY)
    theirs = chain(ST, CHOICE_SEED, ANY, dict.fromkeys(CHAINS[ST], PACED))
    why = [bench.why(ours[LAST]), *(bench.why(step) for step in theirs.values())]
    kept = bench.cells.get("pace", key_of(why))
    if kept is None:
        took = {stage: bench.training(ours[stage])["seconds"] for stage in (AFTER_MNTP, AFTER_SIMCSE, LAST)}
        budget = {AFTER_SIMCSE: took[AFTER_MNTP] + took[AFTER_SIMCSE], LAST: took[LAST]}
        kept = {stage: _spent(seconds, _step(bench, theirs[stage])) for stage, seconds in budget.items()}
        bench.cells.put("pace", key_of(why), why, kept)
        for stage, found in kept.items():
            say(f"{bench.decoder.name}, {stage}: {found['steps']} steps of {ST} in {found['seconds']:.0f} s")
    return kept


def steps(found: dict[str, dict[str, float]]) -> dict[str, int]:
    """Stage -> their steps."""
    return {stage: int(values["steps"]) for stage, values in found.items()}


def _spent(seconds: float, step: float) -> dict[str, float]:
    return {"seconds": seconds, "seconds of a step": step, "steps": max(1, round(seconds / step))}


def _step(bench: Bench, step: Step) -> float:
    with tempfile.TemporaryDirectory() as folder:
        done: dict[str, Any] = bench.timed(step, Path(folder))
    return float(done["seconds of a step"])
