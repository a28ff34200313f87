"""Stages in a chain, each in a folder of its own, made from the one before: what `run` and `ablate` share."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bothways import provenance
from bothways.artefact import ADAPTER, Adapter
from bothways.encoder import Encoder
from bothways.errors import ConfigError
from bothways.evaluation import Task, score
from bothways.evaluation.tables import write_json
from bothways.recipe.reader import Files, MergeStep, Reads, Recipe, Step, reads
from bothways.recipe.stage import Given, amount, checkpoints_of, fingerprint_of, read_files, train_into
from bothways.stages.convert import convert
from bothways.stages.merge import merge
from bothways.training.loop import NOT_IDENTITY as NOT_IN_NUMBERS
from bothways.training.processes import place, wait
from bothways.training.settings import Distil

FILE = "recipe.json"
"""In the folder of a run: what each stage was made from, to be compared at the next run."""
NOT_IDENTITY = (*NOT_IN_NUMBERS, "device")
"""Settings that may differ from those of the run before."""

Identity = dict[str, Any]
"""Everything that decides what a stage makes of the one before it."""
Address = Callable[[str, Sequence[Identity]], Path]
"""A stage's name (`0-convert`, `1-mntp`) and the identities up to its own -> its folder."""
Scores = dict[str, dict[str, float]]
"""Task -> measure -> value."""
OF_VECTORS = ("pooling", "normalize")
"""Settings of the conversion that no token's state depends on."""
WITHOUT_VECTORS = ("mntp",)
"""Stages that train on tokens' states alone."""


@dataclass(frozen=True)
class Data:
    """What a stage reads."""

    rows: Given
    held_out: Given | None
    identity: Mapping[str, str | None]


@dataclass(frozen=True)
class Planned:
    """A stage, its folder, and what it is made of: `step`, `data` where it trains; for the conversion neither."""

    name: str
    folder: Path
    identity: Identity
    step: Step | MergeStep | None = None
    data: Data | None = None
    before: Path | None = None
    """The folder that it is made from."""
    weights: str | None = None
    """Equal for stages with equal weights, though their vectors differ; None: the vectors decide about the weights."""
    merged: Mapping[str, Path] = field(default_factory=dict)
    """Names and folders of the stages that a merge makes it of."""
    base: Path | None = None
    """The folder whose differences to those are merged."""

    @property
    def begun(self) -> bool:
        """Whether it is done or was interrupted."""
        return self.folder.exists() or checkpoints_of(self.folder).exists()


def read_data(what: Reads, files: Files) -> Data:
    """The rows of a stage. Raises DataError for what cannot be used."""
    rows, held_out = read_files(what, files)
    found = {"data": fingerprint_of(rows), "held_out": fingerprint_of(held_out) if held_out else None}
    return Data(rows, held_out, found)


def plan(recipe: Recipe, address: Address, read: Callable[[Reads, Files], Data] = read_data) -> list[Planned]:
    """The stages of `recipe` in order, with their data in memory."""
    identities: list[Identity] = [{"stage": "convert", "base": recipe.base, **_plain(asdict(recipe.convert))}]
    planned = [Planned("0-convert", address("0-convert", identities), identities[0])]
    for number, step in enumerate(recipe.steps, start=1):
        name, before = f"{number}-{step.stage}", planned[-1].folder
        if isinstance(step, MergeStep):
            facts = {"stages": list(step.stages), "base": step.base}
            identities.append({"stage": step.stage, **_plain(asdict(step.settings)), **facts})
            merged = {planned[place].name: planned[place].folder for place in step.stages}
            anchor = None if step.base is None else planned[step.base].folder
            one = Planned(name, address(name, identities), identities[-1], step, None, before, None, merged, anchor)
            planned.append(one)
            continue
        data = read(reads(step.stage, step.settings), step.files)
        taught = {"teacher": _teacher(step.settings.teacher)} if isinstance(step.settings, Distil) else {}
        identities.append({"stage": step.stage, **_plain(asdict(step.settings)), **taught, **data.identity})
        folder = address(name, identities)
        planned.append(Planned(name, folder, identities[-1], step, data, before, _weights(identities)))
    return planned


def _weights(identities: Sequence[Identity]) -> str | None:
    conversion, *stages = identities
    if any(stage["stage"] not in WITHOUT_VECTORS for stage in stages):
        return None
    return digest([{name: value for name, value in conversion.items() if name not in OF_VECTORS}, *stages])


def digest(identities: Sequence[Identity]) -> str:
    """A name for what a chain makes: equal for equal stages from equal bases, whatever recipe they stand in."""
    deciding = [{name: value for name, value in one.items() if name not in NOT_IDENTITY} for one in identities]
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:12]


def difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first thing in which two identities differ, in words; None if they make the same."""
    for name in [*now, *then]:
        if name not in NOT_IDENTITY and then.get(name) != now.get(name):
            return f"{name} was {then.get(name)!r} and is now {now.get(name)!r}"
    return None


def recorded(out: Path) -> dict[str, Identity]:
    """What the stages in the folder of a run were made from. Raises ConfigError if the file is damaged."""
    path = out / FILE
    if not path.exists():
        return {}
    try:
        found: dict[str, Identity] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as problem:
        raise ConfigError(f"{path} line {problem.lineno}: {problem.msg}. Delete {out} and run again.") from None
    return found


def record(out: Path, chain: Sequence[Planned]) -> None:
    """Write down, before the first stage, what they are made from."""
    # From here on the first process writes, and what the others have looked at must be what it found.
    wait(where := place())
    if where.main:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / FILE, {stage.name: stage.identity for stage in chain})


def make(recipe: Recipe, stage: Planned, alike: Path | None = None) -> None:
    """Make one stage, on every process of a launch; nothing if it is there. `alike`: a folder with its weights."""
    where, there = place(), stage.folder.exists()
    wait(where)
    if there:
        say(f"{stage.folder}: done, skipped")
    elif isinstance(stage.step, MergeStep):
        say(f"{stage.folder}: merging {', '.join(stage.merged)}")
        if where.main:
            base = None if stage.base is None else _load(recipe, stage.base)
            given = {name: _load(recipe, folder) for name, folder in stage.merged.items()}
            merge(given, stage.step.settings, base=base).save_pretrained(stage.folder)
    elif stage.step is None or stage.data is None or stage.before is None:
        say(f"{stage.folder}: converting {recipe.base}")
        if where.main:
            convert(recipe.base, recipe.convert).save_pretrained(stage.folder)
    elif alike is not None:
        say(f"{stage.folder}: the weights of {alike}, which this stage would train again, pooled otherwise")
        if where.main:
            _pooled_otherwise(recipe, alike, stage.before).save_pretrained(stage.folder)
    else:
        again = "going on" if stage.begun else "starting"
        say(f"{stage.folder}: {again} with {amount(stage.data.rows)}")
        # From the folder, not from memory: then a run in one go and a run in pieces are the same.
        train_into(_load(recipe, stage.before), stage.step, stage.data.rows, stage.data.held_out, stage.folder)
    wait(where)


def _pooled_otherwise(recipe: Recipe, alike: Path, before: Path) -> Encoder:
    """What the stage of `alike` makes of `before`, which differs from what `alike` was made from in pooling alone."""
    encoder = _load(recipe, alike)
    settings, record = provenance.read(before)
    trained = {name: value for name, value in encoder.record.stages[-1].items() if name not in ("scores", "tasks")}
    encoder.settings, encoder.record = settings, replace(encoder.record, stages=(*record.stages, trained))
    if (alike / ADAPTER).exists():
        encoder.adapter = Adapter.read(alike / ADAPTER)
    return encoder


def measured(recipe: Recipe, folder: Path, tasks: Sequence[Task]) -> Scores:
    """The scores of a stage, which stand in its bothways.json too: found there, or measured now and written."""
    where = place()
    if where.main:
        _measure(recipe, folder, tasks)
    wait(where)
    scores: Scores = provenance.read(folder)[1].stages[-1].get("scores", {})
    return scores


def say(message: str) -> None:
    """One line of progress, by the first process."""
    if place().main:
        print(message, file=sys.stderr, flush=True)


def _measure(recipe: Recipe, folder: Path, tasks: Sequence[Task]) -> None:
    marks = {task.name: _fingerprint(path) for task, path in zip(tasks, recipe.tasks, strict=True)}
    settings, record = provenance.read(folder)
    if record.stages[-1].get("tasks", {}) != marks:
        say(f"{folder}: measuring on {', '.join(marks)}")
        encoder = _load(recipe, folder)
        found = {task.name: score(encoder, task) for task in tasks}
        provenance.write(folder, settings, record.amended(scores=found, tasks=marks))


def _load(recipe: Recipe, folder: Path) -> Encoder:
    how = recipe.convert
    return Encoder.from_pretrained(
        folder,
        device=how.device,
        attn_implementation=how.attn_implementation,
        trust_remote_code=how.trust_remote_code,
    )


def _teacher(name: str) -> str:
    """What is at that place now, if it is a place; else the name of the hub."""
    return f"{Path(name).name} {_fingerprint(Path(name))}" if Path(name).exists() else name


def _fingerprint(path: Path) -> str:
    files = [item for item in path.rglob("*") if item.is_file()] if path.is_dir() else [path]
    return provenance.fingerprint_files(files)


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As it comes back from JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain
