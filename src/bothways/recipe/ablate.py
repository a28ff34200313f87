"""Vary a recipe and measure what each variant comes to. Variants whose first stages are equal share those folders."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from bothways.errors import ConfigError
from bothways.evaluation import read_task
from bothways.evaluation.tables import Cell, write_json
from bothways.folders import refuse_taken
from bothways.provenance import versions
from bothways.recipe.chain import (
    FILE,
    Identity,
    Planned,
    Scores,
    difference,
    digest,
    make,
    measured,
    plan,
    read_data,
    record,
    recorded,
    say,
)
from bothways.recipe.reader import Recipe
from bothways.recipe.switches import Variant, read_switches, seeded, seeds_of, variants
from bothways.training.processes import place

STAGES = "stages"
"""Folder with the folders of all stages, each named after what decides about it."""
TABLE = "ablation.json"
"""What was found so far."""
DEVIATION = "±"


@dataclass(frozen=True)
class _Trained:
    """A variant under one seed."""

    variant: Variant
    seed: int | None
    recipe: Recipe
    chain: Sequence[Planned]

    def __str__(self) -> str:
        return str(self.variant) + ("" if self.seed is None else f" seed={self.seed}")


@dataclass
class Ablation:
    """What an ablation has found so far."""

    recipe: str
    over: tuple[str, ...]
    seeds: tuple[int, ...]
    found: list[tuple[_Trained, Scores]] = field(default_factory=list)

    def rows(self) -> list[dict[str, Cell]]:
        """One row per cell: its switches, then each measure; of several seeds the mean and the standard deviation."""
        rows: list[dict[str, Cell]] = []
        for _, group in groupby(self.found, key=lambda one: list(one[0].variant.values.items())):
            runs = list(group)
            row: dict[str, Cell] = dict(runs[0][0].variant.values)
            for task, measures in runs[0][1].items():
                for measure in measures:
                    values = [scores[task][measure] for _, scores in runs]
                    row[f"{task} {measure}"] = statistics.fmean(values)
                    if len(self.seeds) > 1:
                        several = len(values) > 1
                        row[f"{task} {measure} {DEVIATION}"] = statistics.stdev(values) if several else None
            rows.append(row)
        return rows

    def plain(self) -> dict[str, Any]:
        """As JSON takes it: the rows, and every cell under every seed with its folders."""
        cells = [
            {
                "switches": dict(run.variant.values),
                "seed": run.seed,
                "folders": [f"{STAGES}/{stage.folder.name}" for stage in run.chain],
                "scores": scores,
            }
            for run, scores in self.found
        ]
        given = {"recipe": self.recipe, "over": list(self.over), "seeds": list(self.seeds)}
        return {**given, "versions": versions(), "rows": self.rows(), "cells": cells}


def ablate(recipe: Recipe, over: Sequence[str], out: str | Path, seeds: Sequence[int] = ()) -> Ablation:
    """Make the last encoder of every variant of `recipe` (see `switches.read_switches`) and measure it on its tasks.

    Every stage has a folder under `out`, named after everything that decides about it, so that it is made once for
    all variants that have it; what is done is skipped, what was interrupted goes on. `seeds`: every variant with each
    of them in all its stages; none: with the recipe's own. Variants may be added later.

    Raises ConfigError for switches that do not fit, a recipe without tasks, and if `out` holds what another recipe
    made.
    """
    out, name = Path(out), recipe.path.name
    if not recipe.tasks:
        raise ConfigError(f"{name} names no tasks to compare its variants by. Name some under `evaluate`.")
    switches = read_switches(over, recipe)
    _check_seeds(seeds, [*seeds_of(switches)])
    grid = variants(recipe, switches)
    # Rows are read once for all variants.
    read = cache(read_data)
    own = plan(recipe, lambda stage, _: out / stage, read)
    _check_unchanged(own, out, name)

    def address(stage: str, identities: Sequence[Identity]) -> Path:
        return out / STAGES / f"{stage.split('-', 1)[1]}-{digest(identities)}"

    runs = []
    for variant in grid:
        for seed in seeds or (None,):
            one = variant.recipe if seed is None else seeded(variant.recipe, seed)
            runs.append(_Trained(variant, seed, one, plan(one, address, read)))
    tasks = [read_task(path) for path in recipe.tasks]
    record(out, own)
    return _all_made(Ablation(name, tuple(over), tuple(seeds)), runs, out, tasks)


def _all_made(ablation: Ablation, runs: Sequence[_Trained], out: Path, tasks: Sequence[Any]) -> Ablation:
    stages = [stage for run in runs for stage in run.chain]
    folders = {stage.folder for stage in stages}
    done = sum(folder.exists() for folder in folders)
    say(f"{len(runs)} cells of {len(stages)} stages; shared, they are {len(folders)}, of which {done} are done")
    made = {stage.weights: stage.folder for stage in stages if stage.weights and stage.folder.exists()}
    for number, run in enumerate(runs, start=1):
        say(f"{number} of {len(runs)}: {run}")
        for stage in run.chain:
            alike = None if stage.weights is None else made.setdefault(stage.weights, stage.folder)
            make(run.recipe, stage, None if alike == stage.folder or stage.begun else alike)
        ablation.found.append((run, measured(run.recipe, run.chain[-1].folder, tasks)))
        if place().main:
            write_json(out / TABLE, ablation.plain())
    return ablation


def _check_seeds(seeds: Sequence[int], switches: Sequence[str]) -> None:
    if switches and seeds:
        raise ConfigError(f"--over {switches[0]} and --seeds both set seeds. Leave one out.")
    for number, seed in enumerate(seeds):
        if seed < 0:
            raise ConfigError(f"--seeds: {seed}, expected whole numbers from 0.")
        if seed in seeds[:number]:
            raise ConfigError(f"--seeds: {seed} stands twice. Keep one.")


def _check_unchanged(own: Sequence[Planned], out: Path, name: str) -> None:
    then, now = recorded(out), {stage.name: stage.identity for stage in own}
    if not then:
        refuse_taken(out)
        return
    for problem in _differences(then, now):
        raise ConfigError(
            f"{name} is no longer the recipe that {out / FILE} was made from: {problem}. Put it back, or name another "
            "--out: all cells of a table have one recipe."
        )


def _differences(then: Mapping[str, Identity], now: Mapping[str, Identity]) -> Iterator[str]:
    if list(then) != list(now):
        yield f"its stages were {', '.join(then)} and are now {', '.join(now)}"
    for stage in now:
        if changed := difference(then[stage], now[stage]):
            yield f"of {stage}, {changed}"
