"""Run a recipe: stages that are done are skipped, the one that was interrupted goes on, the rest follow."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bothways import provenance
from bothways.encoder import Encoder
from bothways.errors import ConfigError
from bothways.evaluation import FLOOR, Task, TfIdf, read_task, score
from bothways.evaluation.tables import Cell, write_json
from bothways.recipe.reader import MergeStep, Recipe, Step
from bothways.recipe.stage import Given, amount, checkpoints_of, fingerprint_of, read_files, train_into
from bothways.stages.convert import convert
from bothways.stages.merge import merge
from bothways.training.loop import NOT_IDENTITY as NOT_IN_NUMBERS
from bothways.training.processes import place, wait

FILE = "recipe.json"
"""In the folder of a run: what each stage was made from, to be compared at the next run."""
NOT_IDENTITY = (*NOT_IN_NUMBERS, "device")
"""Settings that may differ from those of the run before."""


@dataclass(frozen=True)
class _Planned:
    """A stage, its folder, and everything that decides what will be in it."""

    folder: Path
    identity: dict[str, Any]
    step: Step | MergeStep | None = None
    rows: Given = ()
    held_out: Given | None = None

    @property
    def begun(self) -> bool:
        return self.folder.exists() or checkpoints_of(self.folder).exists()


def run(recipe: Recipe, out: str | Path) -> list[dict[str, Cell]]:
    """Make every stage of `recipe` in a folder of its own under `out`: 0-convert, 1-mntp, ...

    Returns the scores of all stages and of tf-idf, one row per task and encoder; they stand in each folder's
    bothways.json too. Raises ConfigError if `out` holds stages that the recipe no longer describes.
    """
    out, where = Path(out), place()
    plan = _plan(recipe, out)
    _check_unchanged(plan, _recorded(out), recipe.path.name)
    tasks = [read_task(path) for path in recipe.tasks]
    there = [stage.folder.exists() for stage in plan]
    # From here on the first process writes, and what the others have looked at must be what it found.
    wait(where)
    if where.main:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / FILE, {stage.folder.name: stage.identity for stage in plan})
    found = {}
    for number, stage in enumerate(plan):
        if there[number]:
            _say(f"{stage.folder}: done, skipped")
        elif isinstance(stage.step, Step):
            again = "going on" if stage.begun else "starting"
            _say(f"{stage.folder}: {again} with {amount(stage.rows)}")
            # From the folder, not from memory: then a run in one go and a run in pieces are the same.
            train_into(_load(recipe, plan[number - 1].folder), stage.step, stage.rows, stage.held_out, stage.folder)
        else:
            if where.main:
                _made(recipe, stage, out).save_pretrained(stage.folder)
            wait(where)
        if where.main:
            _measure(recipe, stage.folder, tasks)
        wait(where)
        found[stage.folder.name] = _scores(stage.folder)
    return _table(tasks, found)


def _made(recipe: Recipe, stage: _Planned, out: Path) -> Encoder:
    """What needs no training: the conversion, or a merge of stages that are done."""
    if not isinstance(stage.step, MergeStep):
        _say(f"{stage.folder}: converting {recipe.base}")
        return convert(recipe.base, recipe.convert)
    names = [recipe.names[number] for number in stage.step.stages]
    _say(f"{stage.folder}: merging {', '.join(names)}")
    base = None if stage.step.base is None else _load(recipe, out / recipe.names[stage.step.base])
    return merge({name: _load(recipe, out / name) for name in names}, stage.step.settings, base=base)


def _plan(recipe: Recipe, out: Path) -> list[_Planned]:
    first, *names = recipe.names
    conversion = {"stage": "convert", "base": recipe.base, **_plain(asdict(recipe.convert))}
    plan = [_Planned(out / first, conversion)]
    for name, step in zip(names, recipe.steps, strict=True):
        identity = {"stage": step.stage, **_plain(asdict(step.settings))}
        if isinstance(step, MergeStep):
            identity |= {"stages": list(step.stages), "base": step.base}
            plan.append(_Planned(out / name, identity, step))
            continue
        rows, held_out = read_files(step.stage, step.files)
        identity |= {"data": fingerprint_of(rows), "held_out": fingerprint_of(held_out) if held_out else None}
        plan.append(_Planned(out / name, identity, step, rows, held_out))
    return plan


def _check_unchanged(plan: list[_Planned], recorded: Mapping[str, Mapping[str, Any]], name: str) -> None:
    missing: Path | None = None
    for stage in plan:
        folder = stage.folder
        if not stage.begun:
            missing = missing or folder
            continue
        if missing is not None:
            raise ConfigError(f"{folder} was made from {missing}, which is gone. Delete {folder} too, and run again.")
        if folder.name not in recorded:
            raise ConfigError(f"{folder} exists, but {name} did not make it. Name another --out, or delete it.")
        then = recorded[folder.name]
        for field in [*stage.identity, *then]:
            if field not in NOT_IDENTITY and then.get(field) != stage.identity.get(field):
                raise ConfigError(
                    f"{name} no longer describes {folder}: {field} was {then.get(field)!r} and is now "
                    f"{stage.identity.get(field)!r}. Put it back, name another --out, or delete {folder} and what "
                    "was made from it."
                )
        if not folder.exists():
            missing = folder


def _recorded(out: Path) -> dict[str, dict[str, Any]]:
    path = out / FILE
    if not path.exists():
        return {}
    try:
        found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as problem:
        raise ConfigError(f"{path} line {problem.lineno}: {problem.msg}. Delete {out} and run again.") from None
    return found


def _load(recipe: Recipe, folder: Path) -> Encoder:
    how = recipe.convert
    return Encoder.from_pretrained(
        folder,
        device=how.device,
        attn_implementation=how.attn_implementation,
        trust_remote_code=how.trust_remote_code,
    )


def _measure(recipe: Recipe, folder: Path, tasks: Sequence[Task]) -> None:
    """Write the scores of a stage into its bothways.json, unless those of the same tasks stand there."""
    marks = {task.name: _fingerprint(path) for task, path in zip(tasks, recipe.tasks, strict=True)}
    settings, record = provenance.read(folder)
    last = dict(record.stages[-1])
    if last.get("tasks", {}) != marks:
        _say(f"{folder}: measuring on {', '.join(marks)}")
        encoder = _load(recipe, folder)
        last |= {"scores": {task.name: score(encoder, task) for task in tasks}, "tasks": marks}
        provenance.write(folder, settings, replace(record, stages=(*record.stages[:-1], last)))


def _scores(folder: Path) -> dict[str, dict[str, float]]:
    scores: dict[str, dict[str, float]] = provenance.read(folder)[1].stages[-1].get("scores", {})
    return scores


def _table(tasks: Sequence[Task], found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[dict[str, Cell]]:
    rows: list[dict[str, Cell]] = []
    for task in tasks:
        rows.append({"task": task.name, "encoder": FLOOR, **score(TfIdf.of(task), task)})
        rows += [{"task": task.name, "encoder": name, **scores[task.name]} for name, scores in found.items()]
    return rows


def _fingerprint(path: Path) -> str:
    files = [item for item in path.rglob("*") if item.is_file()] if path.is_dir() else [path]
    return provenance.fingerprint_files(files)


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As it comes back from JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain


def _say(message: str) -> None:
    if place().main:
        print(message, file=sys.stderr, flush=True)
