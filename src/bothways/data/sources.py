"""Where rows come from: a file, a folder or pattern of files, or a data set of the hub, and with which weight."""

from __future__ import annotations

import glob
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from bothways.data.formats import Raw, raw_rows, suffix_of
from bothways.data.hub import HubData
from bothways.data.rows import TEXT
from bothways.errors import ConfigError, DataError, did_you_mean

HUB = "hub:"
SPLIT = "train"
_OPTIONS = re.compile(r"(?P<path>.+?)\?(?P<options>\w+=.*)")
"""`wiki.txt?weight=2&column=body`; a `?` that no `name=` follows belongs to a pattern."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What the examples of a source are told apart from."""

    in_batch: bool = True
    """Whether the documents of the other examples of a batch are negatives; if not, a query has its own hard ones."""
    across: bool = True
    """Whether those on other processes are negatives too."""
    symmetric: bool = False
    """Whether documents look for their queries too."""
    temperature: float | None = None
    """Divides the cosine similarities; None: the stage's."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One source of rows."""

    path: str
    """A file; a folder, read with all below it; a pattern such as `parts/*.parquet`; or `hub:` and a data set's id."""
    weight: float = 1.0
    """How often each of its items is seen in an epoch: 2 is twice; 0.5 is half of them, others in each epoch."""
    column: str = TEXT
    """The column (or JSON field) that holds the text."""
    config: str | None = None
    """Which subset of a data set of the hub."""
    split: str | None = None
    """Which split of a data set of the hub; None: train."""
    revision: str | None = None
    """Which branch, tag or commit of a data set of the hub; None: what is there now."""

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError("A source has an empty path. Name a file, a folder, a pattern, or hub:OWNER/NAME.")
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise ConfigError(f"{self.path}: weight={self.weight!r}, expected a number above 0.")
        of_hub = [name for name in ("config", "split", "revision") if getattr(self, name) is not None]
        if of_hub and not self.is_hub:
            raise ConfigError(
                f'{self.path}: "{of_hub[0]}" is for data sets of the hub. Leave it out, or write hub: before the id.'
            )

    @property
    def is_hub(self) -> bool:
        """Whether `datasets` reads it."""
        return self.path.startswith(HUB)

    @property
    def name(self) -> str:
        """What a record calls it: no folder of this machine, but all that says which rows they are."""
        options = [self.config, self.split, self.revision]
        shown = ":".join([self.path, *(item for item in options if item)])
        return shown if self.is_hub else Path(self.path).name

    def files(self, suffixes: tuple[str, ...]) -> list[Path]:
        """The files of it, in the order in which they are read: by path. Of a folder, those that have such a suffix.

        Raises DataError if there is none, or one of a pattern has another suffix.
        """
        path = Path(self.path)
        if path.is_dir():
            inside = [item for item in path.rglob("*") if item.is_file() and not item.name.startswith(".")]
            found = [item for item in inside if _has_suffix(item, suffixes)]
            if not found:
                raise DataError(f"{path}: no file of the {len(inside)} in it ends in {', '.join(suffixes)}.")
            return sorted(found)
        if path.exists() or not glob.has_magic(self.path):
            suffix_of(path, suffixes)
            if not path.is_file():
                raise DataError(f"{path}: no such file.")
            return [path]
        found = [Path(item) for item in glob.glob(self.path, recursive=True) if Path(item).is_file()]
        if not found:
            raise DataError(f"{self.path}: no file is named so.")
        for item in found:
            suffix_of(item, suffixes)
        return sorted(found)

    def raw(self, suffixes: tuple[str, ...], column: str | None) -> Iterator[tuple[str, Iterable[Raw]]]:
        """File by file, its name and its rows; a data set of the hub is one. See `formats.raw_rows` for `column`."""
        if self.is_hub:
            data = self._hub()
            yield str(data), data.rows(column)
            return
        for path in self.files(suffixes):
            yield path.name, raw_rows(path, suffix_of(path, suffixes), column)

    def fingerprint(self, suffixes: tuple[str, ...]) -> str:
        """SHA-256 of all that decides about the rows: the files' contents in order, or the hub's commit; the column."""
        digest = hashlib.sha256(json.dumps([self.column]).encode())
        if self.is_hub:
            digest.update(self._hub().fingerprint().encode())
        else:
            for path in self.files(suffixes):
                about = path.stat()
                digest.update(suffix_of(path, suffixes).encode())
                digest.update(_of_file(path, about.st_size, about.st_mtime_ns).encode())
        return digest.hexdigest()

    def _hub(self) -> HubData:
        return HubData(self.path.removeprefix(HUB), self.config, self.split or SPLIT, self.revision)


KEYS = tuple(item.name for item in fields(Source))


def as_source(spelling: str | Path | Source, column: str = TEXT) -> Source:
    """A source from how it is written: a path, with options behind a `?` as in `hub:owner/name?split=test&weight=2`.

    `column` is for those that name none. Raises ConfigError for an option that is unknown or has no good value.
    """
    if isinstance(spelling, Source):
        return spelling
    spelling = str(spelling)
    match = None if Path(spelling).exists() else _OPTIONS.fullmatch(spelling)
    if match is None:
        return Source(path=spelling, column=column)
    known = [key for key in KEYS if key != "path"]
    options: dict[str, Any] = {"column": column}
    for key, value in parse_qsl(match["options"], keep_blank_values=True):
        if key not in known:
            raise ConfigError(f'{spelling}: unknown option "{key}". {did_you_mean(key, known)}')
        options[key] = value
    if "weight" in options:
        try:
            options["weight"] = float(options["weight"])
        except ValueError:
            raise ConfigError(f'{spelling}: weight is "{options["weight"]}", expected a number above 0.') from None
    return Source(path=match["path"], **options)


def below(source: Source, folder: Path) -> Source:
    """The source with its path taken from `folder`; an id of the hub stays as it is."""
    return source if source.is_hub else replace(source, path=str(folder / source.path))


def identity(sources: Iterable[Source], suffixes: tuple[str, ...]) -> str:
    """SHA-256 of contents, columns and weights of some sources, in their order."""
    facts = [[source.fingerprint(suffixes), asdict(source)["weight"]] for source in sources]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _has_suffix(path: Path, suffixes: tuple[str, ...]) -> bool:
    try:
        suffix_of(path, suffixes)
    except DataError:
        return False
    return True


@lru_cache(maxsize=4096)
def _of_file(path: Path, size: int, changed: int) -> str:
    """SHA-256 of a file. Size and time are of the key alone: a file that changed is read again."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
