"""Run a recipe: stages that are done are skipped, the one that was interrupted goes on, the rest follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bothways.errors import ConfigError
from bothways.evaluation import FLOOR, Task, TfIdf, read_task, score
from bothways.evaluation.tables import Cell
from bothways.recipe.chain import Planned, Scores, difference, make, measured, plan, record, recorded
from bothways.recipe.reader import Recipe


def run(recipe: Recipe, out: str | Path) -> list[dict[str, Cell]]:
    """Make every stage of `recipe` in a folder of its own under `out`: 0-convert, 1-mntp, ...

    Returns the scores of all stages and of tf-idf, one row per task and encoder; they stand in each folder's
    bothways.json too. Raises ConfigError if `out` holds stages that the recipe no longer describes.
    """
    out = Path(out)
    chain = plan(recipe, lambda name, _: out / name)
    _check_unchanged(chain, recorded(out), recipe.path.name)
    tasks = [read_task(path) for path in recipe.tasks]
    record(out, chain)
    found = {}
    for stage in chain:
        make(recipe, stage)
        found[stage.name] = measured(recipe, stage.folder, tasks)
    return _table(tasks, found)


def _check_unchanged(chain: Sequence[Planned], then: Mapping[str, Mapping[str, Any]], name: str) -> None:
    missing: Path | None = None
    for stage in chain:
        folder = stage.folder
        if not stage.begun:
            missing = missing or folder
            continue
        if missing is not None:
            raise ConfigError(f"{folder} was made from {missing}, which is gone. Delete {folder} too, and run again.")
        if stage.name not in then:
            raise ConfigError(f"{folder} exists, but {name} did not make it. Name another --out, or delete it.")
        if changed := difference(then[stage.name], stage.identity):
            raise ConfigError(
                f"{name} no longer describes {folder}: {changed}. Put it back, name another --out, or delete {folder} "
                "and what was made from it."
            )
        if not folder.exists():
            missing = folder


def _table(tasks: Sequence[Task], found: Mapping[str, Scores]) -> list[dict[str, Cell]]:
    rows: list[dict[str, Cell]] = []
    for task in tasks:
        rows.append({"task": task.name, "encoder": FLOOR, **score(TfIdf.of(task), task)})
        rows += [{"task": task.name, "encoder": name, **scores[task.name]} for name, scores in found.items()]
    return rows
