"""A recipe file -> a `Recipe`, checked to the last key before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import yaml

from bothways.data import OnBadRow
from bothways.recipe.nodes import Document
from bothways.stages.convert import Convert
from bothways.training.settings import MNTP, SimCSE, Supervised, Training

SETTINGS: dict[str, type[Training]] = {"mntp": MNTP, "simcse": SimCSE, "supervised": Supervised}
TOP = ("base", "convert", "stages", "evaluate")


@dataclass(frozen=True, kw_only=True)
class Files:
    """What a stage reads."""

    data: tuple[Path, ...] = ()
    """One or more files: texts for mntp and simcse (.txt, .jsonl), examples for supervised (.jsonl)."""
    held_out: tuple[Path, ...] = ()
    """Files to measure the loss on; none: some rows of `data` are kept back."""
    on_bad_row: OnBadRow = "raise"
    """raise: stop at a row that cannot be used; skip: count it, list it, go on."""


@dataclass(frozen=True)
class Step:
    """One training stage of a recipe."""

    stage: str
    settings: Training
    files: Files


@dataclass(frozen=True)
class Recipe:
    """A base model, how to convert it, the stages in order, and what to measure after each."""

    path: Path
    base: str
    convert: Convert
    steps: tuple[Step, ...]
    tasks: tuple[Path, ...]


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
    steps: list[Step] = []
    if "stages" in top:
        steps = [_step(document, node) for node in document.sequence(top["stages"][1], '"stages"', "stages")]
    tasks: list[Path] = []
    if "evaluate" in top:
        nodes = document.sequence(top["evaluate"][1], '"evaluate"', "tasks")
        tasks = [_existing(document, node, "evaluate") for node in nodes]
    return Recipe(path, str(local) if local.is_dir() else base, convert, tuple(steps), tuple(tasks))


def _step(document: Document, node: yaml.Node) -> Step:
    """`mntp: {data: ..., steps: ...}`: one key, whose value has the files and the settings."""
    named = document.mapping(node, "stages", tuple(SETTINGS))
    if len(named) != 1:
        document.fail(node, f"a stage is one key with its settings, found {len(named)}. Write `- mntp:` and so on.")
    stage, (key, value) = next(iter(named.items()))
    settings, file_keys = SETTINGS[stage], [item.name for item in fields(Files)]
    keys = document.mapping(value, stage, [*file_keys, *(item.name for item in fields(settings))])
    if "data" not in keys:
        document.fail(key, f'"data" is missing in {stage}. Name a file, or a list of files.')
    files = document.settings(keys, Files, stage)
    nodes = {name: keys[name][1] for name in ("data", "held_out") if name in keys}
    found = {name: _all_existing(document, node, f"{name} of {stage}") for name, node in nodes.items()}
    return Step(
        stage,
        document.settings(keys, settings, stage),
        Files(data=found["data"], held_out=found.get("held_out", ()), on_bad_row=files.on_bad_row),
    )


def _all_existing(document: Document, node: yaml.Node, where: str) -> tuple[Path, ...]:
    nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
    if not nodes:
        document.fail(node, f"{where} is an empty list. Name a file.")
    return tuple(_existing(document, item, where) for item in nodes)


def _existing(document: Document, node: yaml.Node, where: str) -> Path:
    name: Path = document.value(node, Path, where, "the recipe")
    path = document.path.parent / name
    if document.files_exist and not path.exists():
        document.fail(node, f"{where}: {name} does not exist. Paths are relative to the recipe's folder.")
    return path
