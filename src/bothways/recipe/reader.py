"""A recipe file -> a `Recipe`, checked to the last key before anything is loaded."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml

from bothways.data import KEYS, OnBadRow, Source, as_source, below
from bothways.errors import ConfigError, did_you_mean
from bothways.recipe.nodes import Document, Keys, show
from bothways.stages.convert import Convert
from bothways.stages.merge_settings import Merge
from bothways.training.settings import MNTP, Distil, SimCSE, Supervised, Training

SETTINGS: dict[str, type[Training]] = {"mntp": MNTP, "simcse": SimCSE, "supervised": Supervised, "distil": Distil}
STAGES = (*SETTINGS, "merge")
Reads = Literal["stream", "texts", "examples"]
"""What a stage is given: texts that are streamed, texts in memory, or examples in memory."""
TOP = ("base", "convert", "stages", "evaluate")


@dataclass(frozen=True, kw_only=True)
class Files:
    """What a stage reads."""

    data: tuple[Source, ...] = ()
    """What to train on: texts for mntp and simcse, examples for supervised, either for distil."""
    held_out: tuple[Source, ...] = ()
    """What to measure the loss on; none: some rows of `data` are kept back."""
    on_bad_row: OnBadRow = "raise"
    """raise: stop at a row that cannot be used; skip: count it, list it, go on."""

    def __post_init__(self) -> None:
        for source in self.held_out:
            if source.weight != 1:
                raise ConfigError(
                    f"{source.name}: weight={source.weight:g}, but what is held out is measured once. Leave it out."
                )


@dataclass(frozen=True)
class Step:
    """One training stage of a recipe."""

    stage: str
    settings: Training
    files: Files


@dataclass(frozen=True)
class MergeStep:
    """Earlier stages of a recipe, by their numbers, that become one encoder."""

    settings: Merge
    stages: tuple[int, ...]
    """Those that are merged, in this order; 0 is the conversion."""
    base: int | None = None
    """The one whose differences to them are merged."""
    stage: Literal["merge"] = "merge"


@dataclass(frozen=True)
class Recipe:
    """A base model, how to convert it, the stages in order, and what to measure after each."""

    path: Path
    base: str
    convert: Convert
    steps: tuple[Step | MergeStep, ...]
    tasks: tuple[Path, ...]

    @property
    def names(self) -> list[str]:
        """What the folders of its stages are called, the conversion first."""
        return _names([step.stage for step in self.steps])


def _names(stages: Iterable[str]) -> list[str]:
    return [f"{number}-{stage}" for number, stage in enumerate(["convert", *stages])]


def reads(stage: str, settings: Training) -> Reads:
    """What the stage is given."""
    if stage == "mntp":
        return "stream"
    contrasting = isinstance(settings, Distil) and settings.contrastive > 0
    return "examples" if stage == "supervised" or contrasting else "texts"


def read(path: str | Path, *, files_exist: bool = True) -> Recipe:
    """The recipe in a YAML file; paths in it are relative to the file. `files_exist=False`: data may be missing yet.

    Raises ConfigError with file, line and key for whatever is unknown, missing or of a wrong type or value.
    """
    path = Path(path)
    document = Document(path, files_exist=files_exist)
    top = document.mapping(document.root, "the recipe", TOP)
    if "base" not in top:
        document.fail(document.root, '"base" is missing. Name a decoder: a folder, a hub id, or "embedded".')
    base = document.value(top["base"][1], str, "base", "the recipe")
    local = path.parent / base
    convert = Convert()
    if "convert" in top:
        keys = document.mapping(top["convert"][1], "convert", [item.name for item in fields(Convert)])
        convert = document.settings(keys, Convert, "convert")
    steps: list[Step | MergeStep] = []
    if "stages" in top:
        for node in document.sequence(top["stages"][1], '"stages"', "stages"):
            steps.append(_step(document, node, _names(step.stage for step in steps)))
    tasks: list[Path] = []
    if "evaluate" in top:
        nodes = document.sequence(top["evaluate"][1], '"evaluate"', "tasks")
        tasks = [_existing(document, node, "evaluate") for node in nodes]
    return Recipe(path, str(local) if local.is_dir() else base, convert, tuple(steps), tuple(tasks))


def _step(document: Document, node: yaml.Node, earlier: list[str]) -> Step | MergeStep:
    """`mntp: {data: ..., steps: ...}`: one key, whose value has the files and the settings."""
    named = document.mapping(node, "stages", STAGES)
    if len(named) != 1:
        document.fail(node, f"a stage is one key with its settings, found {len(named)}. Write `- mntp:` and so on.")
    stage, (key, value) = next(iter(named.items()))
    return _merging(document, key, value, earlier) if stage == "merge" else _training(document, stage, key, value)


def _training(document: Document, stage: str, key: yaml.Node, value: yaml.Node) -> Step:
    settings, file_keys = SETTINGS[stage], [item.name for item in fields(Files)]
    keys = document.mapping(value, stage, [*file_keys, *(item.name for item in fields(settings))])
    if "data" not in keys:
        document.fail(key, f'"data" is missing in {stage}. Name a file, or a list of files.')
    how = document.settings(keys, settings, stage)
    if isinstance(how, Distil):
        how = replace(how, teacher=_teacher(document, key, keys, how.teacher))
    on_bad_row = document.settings(
        {name: keys[name] for name in ("on_bad_row",) if name in keys}, Files, stage
    ).on_bad_row
    sources = {
        name: tuple(_sources(document, keys[name][1], f"{name} of {stage}", reads(stage, how)))
        for name in ("data", "held_out")
        if name in keys
    }
    try:
        files = Files(**sources, on_bad_row=on_bad_row)
    except ConfigError as problem:
        document.fail(keys["held_out"][0], str(problem))
    return Step(stage, how, files)


def _teacher(document: Document, key: yaml.Node, keys: Mapping[str, tuple[yaml.Node, yaml.Node]], teacher: str) -> str:
    """Where the teacher is: a path relative to the recipe's folder if it is there, else a name of the hub."""
    if not teacher:
        document.fail(key, '"teacher" is missing in distil. Name a folder, a .parquet file of vectors, or a hub id.')
    local = document.path.parent / teacher
    if document.files_exist and teacher.endswith(".parquet") and not local.is_file():
        document.fail(
            keys["teacher"][0],
            f"teacher of distil: {teacher} does not exist. Paths are relative to the recipe's folder.",
        )
    return str(local) if local.exists() else teacher


def _merging(document: Document, key: yaml.Node, value: yaml.Node, earlier: list[str]) -> MergeStep:
    """`merge: {stages: [1-mntp, 3], base: 0-convert, ...}`: which of the stages before it, and the settings."""
    keys = document.mapping(value, "merge", ["stages", "base", *(item.name for item in fields(Merge))])
    if "stages" not in keys:
        document.fail(key, f'"stages" is missing in merge. Name two or more of {", ".join(earlier)}.')
    numbers: list[int] = []
    for node in document.sequence(keys["stages"][1], '"stages" of merge', "stages"):
        number = _earlier(document, node, "stages", earlier)
        if number in numbers:
            document.fail(
                node, f"{earlier[number]} stands twice in stages of merge. Keep one, and give it more weight."
            )
        numbers.append(number)
    base = _earlier(document, keys["base"][1], "base", earlier) if "base" in keys else None
    settings = document.settings(keys, Merge, "merge")
    try:
        settings.shares(len(numbers), anchored=base is not None)
    except ConfigError as problem:
        blamed: Keys = {name: keys[name] for name in ("t", "weights", "stages") if name in keys}
        document.fail(next(iter(blamed.values()))[0], str(problem))
    return MergeStep(settings, tuple(numbers), base)


def _earlier(document: Document, node: yaml.Node, key: str, earlier: list[str]) -> int:
    """The number of an earlier stage from its number, the name of its folder, or its kind where there is one of it."""
    wanted: int | str = document.value(node, int | str, key, "merge")
    found = [
        number
        for number, name in enumerate(earlier)
        if wanted in (number, name) or (isinstance(wanted, str) and name.partition("-")[2] == wanted)
    ]
    if len(found) > 1:
        several = " and ".join(earlier[number] for number in found)
        document.fail(node, f"{show(node)} in {key} of merge is {several}. Say which.")
    if not found:
        way_out = did_you_mean(str(wanted), earlier)
        document.fail(node, f"{show(node)} in {key} of merge is no stage before it. {way_out}")
    return found[0]


def _sources(document: Document, node: yaml.Node, where: str, what: Reads) -> Iterator[Source]:
    """One source or a list of them, each a path or a mapping, with the paths made relative to the recipe's folder."""
    nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
    if not nodes:
        document.fail(node, f"{where} is an empty list. Name a file.")
    for item in nodes:
        source = _source(document, item, where)
        try:
            source.check_for("examples" if what == "examples" else "texts")
        except ConfigError as problem:
            document.fail(item, f"{where}: {problem}")
        found = below(source, document.path.parent)
        there = found.is_hub or Path(found.path).exists() or glob.glob(found.path, recursive=True)
        if document.files_exist and not there:
            document.fail(item, f"{where}: {source.path} does not exist. Paths are relative to the recipe's folder.")
        yield found


def _source(document: Document, node: yaml.Node, where: str) -> Source:
    values: dict[str, Any] = {}
    if isinstance(node, yaml.MappingNode):
        keys = document.mapping(node, where, KEYS)
        if "path" not in keys:
            document.fail(node, f'"path" is missing in {where}. Name a file, a folder, a pattern, or hub:OWNER/NAME.')
        hints = get_type_hints(Source)
        values = {name: document.value(value, hints[name], name, where) for name, (_, value) in keys.items()}
    else:
        path: Path = document.value(node, Path, where, "the recipe")
    try:
        return Source(**values) if values else as_source(path)
    except ConfigError as problem:
        document.fail(node, str(problem))


def _existing(document: Document, node: yaml.Node, where: str) -> Path:
    name: Path = document.value(node, Path, where, "the recipe")
    path = document.path.parent / name
    if document.files_exist and not path.exists():
        document.fail(node, f"{where}: {name} does not exist. Paths are relative to the recipe's folder.")
    return path
