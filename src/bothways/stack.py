"""A name and adapters on it -> the model at the bottom and all adapters above it, in the order they are merged."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bothways import loading, lora, provenance, references
from bothways.errors import ConfigError, DataError


@dataclass(frozen=True)
class Stack:
    """What is to be put together."""

    ground: Path
    """The folder of a whole model."""
    name: str
    """How it was called."""
    adapters: tuple[lora.Adapter, ...]
    """Merged in this order."""
    folders: tuple[Path, ...]
    """The folder that was asked for, what its adapter was trained on, and so on down to the ground."""
    config: dict[str, Any] = field(repr=False)
    """config.json of the ground; empty if it has none at its root."""

    @property
    def top(self) -> Path:
        """Whose llm2vec_config.json holds: the adapter that was given last, else what was asked for."""
        return self.adapters[-1].folder if self.adapters else self.ground

    @property
    def is_made(self) -> bool:
        """Whether the ground is an encoder of the reference, whole."""
        return references.is_made_by_it(self.ground, self.config)

    def names(self) -> list[str]:
        """All names under which the decoder at the bottom is known to somebody, the nearest first."""
        recorded = [_json(folder / "config.json").get("_name_or_path") for folder in self.folders]
        said = [adapter.base for adapter in self.adapters]
        return [name for name in dict.fromkeys([self.name, *recorded, *said]) if name]


def stacked(name_or_folder: str | Path, wish: loading.Wish) -> Stack:
    """Find all parts. Raises DataError for a missing part or one that is no adapter, ConfigError for a wrong order."""
    name, folder = str(name_or_folder), loading.resolve(name_or_folder, wish.revision)
    folders, adapters, revision = [folder], list[lora.Adapter](), wish.revision
    while not (folder / provenance.FILE).exists() and lora.place_of(folder) is not None:
        adapter = lora.read(name, folder, revision)
        name, folder, revision = _base(adapter, None if adapters else wish.base)
        if folder in folders:
            raise DataError(
                f"{adapter.folder / lora.CONFIG} names {name} as its base, which is built on it. Pass base=."
            )
        adapters.insert(0, adapter)
        folders.append(folder)
    if wish.base is not None and not adapters:
        raise ConfigError(
            f"base={str(wish.base)!r} is what an adapter was trained on, but {name_or_folder} is no adapter. "
            "Leave base out, or pass the adapter's folder."
        )
    adapters += [lora.read(given, loading.resolve(given)) for given in wish.adapters]
    _refuse_twice(adapters)
    stack = Stack(folder, name, tuple(adapters), tuple(folders), _json(folder / "config.json"))
    if not wish.without_mntp:
        _refuse_to_skip_mntp(stack)
    return stack


def _base(adapter: lora.Adapter, given: str | Path | None) -> tuple[str, Path, str | None]:
    """Name, folder and revision of what an adapter was trained on."""
    if given is not None:
        return str(given), loading.resolve(given), None
    if adapter.base is None:
        raise DataError(f"{adapter.folder / lora.CONFIG} names no base. Pass the model it was trained on as base=.")
    revision = adapter.config.get("revision")
    try:
        return adapter.base, loading.resolve(adapter.base, revision), revision
    except DataError as error:
        raise DataError(
            f"{adapter.name} was trained on {adapter.base}, which is not here: {error}\n"
            "  If you have that model elsewhere, pass its folder as base=."
        ) from error


def _refuse_twice(adapters: list[lora.Adapter]) -> None:
    seen: dict[str, str] = {}
    for adapter in adapters:
        fingerprint = adapter.fingerprint()
        if fingerprint in seen:
            raise ConfigError(
                f"{adapter.name} and {seen[fingerprint]} are the same adapter, which would be merged twice. "
                "Leave one of them out."
            )
        seen[fingerprint] = adapter.name


def _refuse_to_skip_mntp(stack: Stack) -> None:
    """Nothing, unless what was trained on an MNTP model would stand on the decoder that MNTP began with."""
    whole = any((stack.ground / file).exists() for file in (provenance.FILE, "modules.json"))
    if whole or stack.is_made or any((folder / "modules.json").exists() for folder in stack.folders):
        return
    sign = references.comes_second(stack.adapters[0]) if stack.adapters else None
    if sign is None:
        return
    first = stack.adapters[0].name
    raise ConfigError(
        f"{first} was trained on top of an MNTP stage ({sign}), but would stand on {stack.name}, which has none: "
        "peft would load that without a word, and the vectors would be others.\n"
        f'  Pass the MNTP adapter first: Encoder.from_pretrained("...-mntp", adapter="{first}"). If the weights of '
        "that decoder have been through MNTP, or this is the first stage itself, pass without_mntp=True."
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except json.JSONDecodeError as error:
        raise DataError(f"{path} line {error.lineno}: {error.msg}. Restore the file.") from error
    return found
