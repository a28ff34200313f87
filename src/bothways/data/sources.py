"""Where rows come from (a file, a folder or pattern of files, a data set of the hub) and how they are learnt from."""

from __future__ import annotations

import glob
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints
from urllib.parse import parse_qsl

from bothways.data.formats import raw_rows, suffix_of
from bothways.data.hub import HubData
from bothways.data.rows import TEXT, Raw
from bothways.data.streams import Place, content_of, file_system, is_file, is_url, name_of
from bothways.errors import ConfigError, DataError, did_you_mean

HUB = "hub:"
SPLIT = "train"
Format = Literal["auto", "rows", "e5", "beir"]
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

    def __post_init__(self) -> None:
        _check_above_0("temperature", self.temperature)
        if self.symmetric and not self.in_batch:
            raise ConfigError(
                "symmetric=True needs in_batch=True: a document is told apart from the queries of the other examples. "
                "Leave one of them out."
            )


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
    format: Format = "auto"
    """How a folder of examples is laid out: rows (in files), e5, beir (see `docs/data.md`); auto: as it looks."""
    query_instruction: str | None = None
    """Instruction for the queries of rows that bring none."""
    document_instruction: str | None = None
    """Instruction for the documents of rows that bring none."""
    score_max: float = 1.0
    """What the scores of graded pairs are divided by, so that they end at 1: 5 for STS."""
    in_batch: bool = True
    """Whether the documents of the other examples of a batch are negatives; see `Policy`, as for what follows."""
    across: bool = True
    """Whether those on other processes are negatives too."""
    symmetric: bool = False
    """Whether documents look for their queries too."""
    temperature: float | None = None
    """Divides the cosine similarities; None: the stage's."""

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError("A source has an empty path. Name a file, a folder, a pattern, or hub:OWNER/NAME.")
        try:
            _check_above_0("weight", self.weight)
            _check_above_0("score_max", self.score_max)
            _ = self.policy
        except ConfigError as problem:
            raise ConfigError(f"{self.path}: {problem}") from None
        if self.format not in get_args(Format):
            known = ", ".join(f'"{name}"' for name in get_args(Format))
            raise ConfigError(f'{self.path}: format is "{self.format}", expected one of {known}.')
        for name in ("query_instruction", "document_instruction"):
            value = getattr(self, name)
            if value is not None and not value.strip():
                raise ConfigError(f'{self.path}: "{name}" is empty. Leave it out.')
        self._check_place()

    def _check_place(self) -> None:
        """What goes with which kind of path. Raises ConfigError."""
        of_hub = [name for name in ("config", "revision") if getattr(self, name) is not None]
        if of_hub and not self.is_hub:
            raise ConfigError(
                f'{self.path}: "{of_hub[0]}" is for data sets of the hub. Leave it out, or write hub: before the id.'
            )
        if self.split is not None and not self.is_hub and self.format != "beir":
            raise ConfigError(
                f'{self.path}: "split" is for data sets of the hub. Leave it out, or write hub: before the id, or say '
                "format=beir of a folder with qrels."
            )
        if self.is_hub and self.format in ("e5", "beir"):
            raise ConfigError(f"{self.path}: format={self.format} is for folders. Leave it out, or name a folder.")

    def check_for(self, what: Literal["texts", "examples"]) -> None:
        """Raises ConfigError for a key that says nothing about what is to be read."""
        if what == "examples" and self.column != TEXT:
            raise ConfigError(
                f'{self.name}: "column" is for texts; examples have columns of their own (query, positive, negatives). '
                "Leave it out."
            )
        # The default of a field is the attribute of its class.
        for name in OF_EXAMPLES if what == "texts" else ():
            if getattr(self, name) != getattr(Source, name):
                raise ConfigError(
                    f'{self.name}: "{name}" is for examples, of which each has a query and documents; these are texts. '
                    "Leave it out."
                )

    @property
    def policy(self) -> Policy:
        """What its examples are told apart from."""
        return Policy(
            in_batch=self.in_batch, across=self.across, symmetric=self.symmetric, temperature=self.temperature
        )

    @property
    def is_hub(self) -> bool:
        """Whether `datasets` reads it."""
        return self.path.startswith(HUB)

    @property
    def name(self) -> str:
        """What a record calls it: no folder of this machine, but all that says which rows they are."""
        options = [self.config, self.split, self.revision]
        path = self.path if self.is_hub else name_of(self.path)
        return ":".join([path, *(item for item in options if item)])

    def files(self, suffixes: tuple[str, ...]) -> list[Place]:
        """The files of it, in the order in which they are read: by path. Of a folder, those that have such a suffix.

        Raises DataError if there is none, or one of a pattern has another suffix.
        """
        inside, found = self._listed()
        if inside is not None:
            found = [item for item in inside if not name_of(item).startswith(".") and _has_suffix(item, suffixes)]
            if not found:
                raise DataError(f"{self.path}: no file of the {len(inside)} in it ends in {', '.join(suffixes)}.")
        for item in found:
            suffix_of(item, suffixes)
            if len(found) == 1 and not is_file(item):
                raise DataError(f"{item}: no such file.")
        return sorted(found, key=lambda place: Path(place).parts)

    def _listed(self) -> tuple[list[Place] | None, list[Place]]:
        """What is in it, if it is a folder; otherwise the files that it names."""
        if is_url(self.path):
            system, path = file_system(self.path)
            if system.isdir(path):
                return [system.unstrip_protocol(item) for item in system.find(path)], []
            if not _is_pattern(self.path) or system.exists(path):
                return None, [self.path]
            items = [system.unstrip_protocol(item) for item in system.glob(path) if system.isfile(item)]
        else:
            here = Path(self.path)
            if here.is_dir():
                return [item for item in here.rglob("*") if item.is_file()], []
            if here.exists() or not glob.has_magic(self.path):
                return None, [here]
            items = [Path(item) for item in glob.glob(self.path, recursive=True) if Path(item).is_file()]
        if not items:
            raise DataError(f"{self.path}: no file is named so.")
        return None, items

    def raw(self, suffixes: tuple[str, ...], column: str | None) -> Iterator[tuple[str, Iterable[Raw]]]:
        """File by file, its name and its rows; a data set of the hub is one. See `formats.raw_rows` for `column`."""
        if self.is_hub:
            data = self.hub
            yield str(data), data.rows(None if column is None else [column])
            return
        for place in self.files(suffixes):
            yield name_of(place), raw_rows(place, suffix_of(place, suffixes), column)

    def fingerprint(self, suffixes: tuple[str, ...]) -> str:
        """SHA-256 of all that decides about the rows: the files' contents in order, or the hub's commit; the column."""
        digest = hashlib.sha256(json.dumps([self.column]).encode())
        if self.is_hub:
            digest.update(self.hub.fingerprint().encode())
        else:
            for place in self.files(suffixes):
                digest.update(suffix_of(place, suffixes).encode())
                digest.update(content_of(place).encode())
        return digest.hexdigest()

    @property
    def hub(self) -> HubData:
        """The data set of a source of the hub."""
        return HubData(self.path.removeprefix(HUB), self.config, self.split or SPLIT, self.revision)


KEYS = tuple(item.name for item in fields(Source))
OF_EXAMPLES = ("format", "query_instruction", "document_instruction", "score_max", *(f.name for f in fields(Policy)))
"""Keys that say nothing about texts."""


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
        options[key] = _option(spelling, key, value)
    return Source(path=match["path"], **options)


def _option(spelling: str, key: str, value: str) -> Any:
    """The value of an option as its key wants it. Raises ConfigError."""
    hint = get_type_hints(Source)[key]
    if hint is bool:
        if value not in ("true", "false"):
            raise ConfigError(f'{spelling}: {key} is "{value}", expected true or false.')
        return value == "true"
    if float not in (hint, *get_args(hint)):
        return value
    try:
        return float(value)
    except ValueError:
        raise ConfigError(f'{spelling}: {key} is "{value}", expected a number above 0.') from None


def below(source: Source, folder: Path) -> Source:
    """The source with its path taken from `folder`; an id of the hub stays as it is."""
    return source if source.is_hub or is_url(source.path) else replace(source, path=str(folder / source.path))


def identity(sources: Iterable[Source], suffixes: tuple[str, ...]) -> str:
    """SHA-256 of contents, columns and weights of some sources, in their order."""
    facts = [[source.fingerprint(suffixes), asdict(source)["weight"]] for source in sources]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _check_above_0(name: str, value: float | None) -> None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{name}={value!r}, expected a number above 0.")


def _has_suffix(path: Place, suffixes: tuple[str, ...]) -> bool:
    try:
        suffix_of(path, suffixes)
    except DataError:
        return False
    return True


def _is_pattern(path: str) -> bool:
    """Whether it is one. A `?` in a URL begins its query, a `[` is rare in both."""
    return "*" in path
