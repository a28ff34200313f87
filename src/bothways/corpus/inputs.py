"""Inputs -> files with what tells them from others, and units: some rows of a file, which become one part."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from bothways.corpus.columns import IDS, SAMPLE, TITLE, Kept, type_of
from bothways.data.formats import TEXTS, check_column, header_of, suffix_of, text_rows
from bothways.data.hub import HubData
from bothways.data.parquet import opened
from bothways.data.rows import TEXT
from bothways.data.sources import Source, as_source
from bothways.data.streams import DamagedError, Lines, Place, content_of, is_url, name_of, open_raw, state_of
from bothways.errors import ConfigError, DataError

HUB_DATA = "hub"
"""Stands for the suffix where the rows are no file's."""


@dataclass(frozen=True)
class InputFile:
    """One file of the input, or a data set of the hub."""

    place: str
    """A path from the root, a URL, or the id of a data set."""
    name: str
    """Unlike that of any other file of the job: ids and errors use it."""
    suffix: str
    text: str
    """The column of the text."""
    state: str
    """What tells one state of it from another without reading it."""
    content: str = ""
    """SHA-256 of it; of Parquet of its footer and size, of the hub the commit."""
    rows: int = 0
    columns: tuple[str, ...] | None = None
    """Columns that are read of Parquet and of the hub."""
    header: tuple[str, ...] | None = None
    """Of a table in text."""
    hub: HubData | None = None

    @property
    def source(self) -> Place:
        """Where it is, as the readers take it."""
        return self.place if is_url(self.place) else Path(self.place)


@dataclass(frozen=True)
class Unit:
    """Rows of one file that become one part."""

    number: int
    file: int
    """Which file of the job."""
    rows: int
    row: int
    """So many rows of the file lie before it."""
    byte: int = 0
    """The same in bytes of the decompressed text, and in lines."""
    line: int = 0


@dataclass(frozen=True)
class Rejected:
    """A row that cannot be used, or what a file lost from some place on."""

    file: str
    place: str
    reason: str

    @property
    def line(self) -> str:
        """As it is listed."""
        return f"{self.file} {self.place}: {self.reason}"


@dataclass
class Losses:
    """What damaged files have lost. With `skip` it is kept here, without it is raised."""

    skip: bool
    found: list[Rejected] = field(default_factory=list)

    def add(self, name: str, problem: DamagedError) -> None:
        """Raises the problem, unless it is skipped."""
        if not self.skip:
            raise DataError(f"{problem} Or pass --on-bad-row skip: what can be read is kept.") from None
        place, _, reason = str(problem).removeprefix(name).partition(": ")
        self.found.append(Rejected(name, place.strip(), reason))


def input_files(inputs: Sequence[str | Path | Source], text: str = TEXT) -> tuple[InputFile, ...]:
    """The files that the inputs name, in their order, not yet read. `text` is the column of those that name none.

    Raises DataError if one is not there or named twice, ConfigError for an option that says nothing about texts.
    """
    files = [file for item in inputs for file in _files_of(as_source(item, text))]
    places = [file.place for file in files]
    twice = next(iter(_repeated(places)), None)
    if twice is not None:
        raise DataError(f"{twice} is named twice, so that its rows would be there twice. Name it once.")
    taken = _repeated(file.name for file in files)
    return tuple(replace(file, name=file.place) if file.name in taken else file for file in files)


def _repeated(names: Iterable[str]) -> set[str]:
    return {name for name, times in Counter(names).items() if times > 1}


def _files_of(source: Source) -> Iterator[InputFile]:
    source.check_for("texts")
    if source.weight != 1:
        raise ConfigError(f'{source.path}: "weight" is for training: every row is encoded once. Leave it out.')
    if source.is_hub:
        yield InputFile(source.hub.name, source.name, HUB_DATA, source.column, "", hub=source.hub)
        return
    for place in source.files(TEXTS):
        path = str(place) if is_url(place) else str(Path(place).absolute())
        yield InputFile(path, name_of(place), suffix_of(place, TEXTS), source.column, state_of(place))


def looked_at(
    files: Iterable[InputFile], ids: str | None, keep: Sequence[Kept], most: int, losses: Losses
) -> tuple[tuple[InputFile, ...], dict[Kept, pa.DataType]]:
    """The files with what their first rows say of columns, and the type of each column that is kept.

    No line of more than `most` bytes is read. Raises DataError for a column that is not there, or is of another type in
    another file.
    """
    types: dict[Kept, tuple[pa.DataType, str]] = {}
    looked = []
    for file in files:
        try:
            known, rows, schema = _head(file, most)
        except DamagedError as problem:
            losses.add(name_of(file.place), problem)
            continue
        _check_columns(file, known, ids, keep)
        for column in keep:
            kind = schema.field(column.name).type if schema and not column.said else type_of(column, rows, file.name)
            before, where = types.setdefault(column, (kind, file.name))
            if before != kind:
                raise DataError(
                    f'{file.name}: "{column.name}" is of type {kind}, but of type {before} in {where}. '
                    f"Say which it is: --keep {column.name}:string."
                )
        read = [file.text, *([TITLE] if file.text == TEXT else []), *([ids] if ids else IDS), *(c.name for c in keep)]
        columns = tuple(name for name in dict.fromkeys(read) if name in known)
        typed = file.suffix in (".parquet", HUB_DATA)
        header = tuple(known) if file.suffix in (".csv", ".tsv") else None
        looked.append(replace(file, columns=columns if typed else None, header=header))
    return tuple(looked), {column: kind for column, (kind, _) in types.items()}


def _head(file: InputFile, most: int) -> tuple[list[str], list[Any], pa.Schema | None]:
    """Columns, the first rows where they have to say the types, and the schema where there is one."""
    if file.hub is not None:
        rows = [raw.value for raw in islice(file.hub.rows(None), SAMPLE)]
        return list(dict.fromkeys(name for row in rows for name in row)), rows, None
    if file.suffix == ".parquet":
        with opened(file.source) as parquet:
            return list(parquet.schema_arrow.names), [], parquet.schema_arrow
    with closing(Lines(file.source, most)) as lines:
        header = header_of(lines, file.suffix)
        values = []
        # The pass over all rows finds it again, and says so.
        with suppress(DamagedError):
            for raw in islice(text_rows(lines, file.suffix, header), SAMPLE):
                values.append(raw.value)
    objects = [value for value in values if isinstance(value, dict)]
    return list(dict.fromkeys(name for row in objects for name in row)) if header is None else header, objects, None


def _check_columns(file: InputFile, known: list[str], ids: str | None, keep: Sequence[Kept]) -> None:
    """Raises DataError, naming the file, the columns there are and the nearest, for a column that is not there."""
    table = file.suffix in (".csv", ".tsv", ".parquet", HUB_DATA)
    if file.suffix != ".txt" and known:
        check_column(file.name, file.text, filter(None, known), "--text-column")
    # A table without a header is empty.
    if known or not table:
        check_column(file.name, ids, filter(None, known), "--id-column")
        for column in keep:
            # What is rare in JSON may be kept all the same, by saying its type.
            if not column.said or table:
                check_column(file.name, column.name, filter(None, known), "--keep")


def planned(file: InputFile, size: int, most: int, losses: Losses) -> tuple[InputFile, list[Unit]]:
    """The file, counted and told from others, and its units of `size` rows; their `number` and `file` are set later.

    Text is read once, from its beginning to its end.
    """
    if file.suffix in (".parquet", HUB_DATA):
        content, rows = content_of_input(file), _counted(file)
        units = [Unit(0, 0, min(size, rows - row), row) for row in range(0, rows, size)]
        return replace(file, content=content, rows=rows), units
    digest = hashlib.sha256()
    rows, starts = 0, list[tuple[int, int]]()
    with closing(Lines(file.source, most, digest)) as lines:
        try:
            header = header_of(lines, file.suffix)
            # Only counted: what is wrong with a value is said when it is encoded.
            starts.append((lines.byte, lines.line))
            for rows, _ in enumerate(text_rows(lines, file.suffix, header, values=False), start=1):
                if rows % size == 0:
                    starts.append((lines.byte, lines.line))
        except DamagedError as problem:
            losses.add(lines.name, problem)
        lines.drain()
    places = enumerate(starts[: -(-rows // size)])
    units = [Unit(0, 0, min(size, rows - i * size), i * size, byte, line) for i, (byte, line) in places]
    return replace(file, content=digest.hexdigest(), rows=rows), units


def joined(units: Sequence[Unit], times: int) -> list[Unit]:
    """So many units that follow one another in a file as one each, numbered anew."""
    made: list[Unit] = []
    for _, own in groupby(units, key=lambda unit: unit.file):
        pieces = list(own)
        for start in range(0, len(pieces), times):
            some = pieces[start : start + times]
            made.append(replace(some[0], number=len(made), rows=sum(unit.rows for unit in some)))
    return made


def content_of_input(file: InputFile) -> str:
    """What tells its content from another: SHA-256 of the bytes, of Parquet of footer and size; the hub's commit."""
    if file.hub is not None:
        return file.hub.fingerprint()
    if file.suffix != ".parquet":
        return content_of(file.source)
    with closing(open_raw(file.source)) as raw:
        size = raw.seek(0, 2)
        raw.seek(max(size - 8, 0))
        footer = int.from_bytes(raw.read(8)[:4], "little")
        raw.seek(max(size - 8 - footer, 0))
        return hashlib.sha256(f"{size}:".encode() + raw.read()).hexdigest()


def _counted(file: InputFile) -> int:
    if file.hub is not None:
        return file.hub.count()
    with opened(file.source) as parquet:
        return int(parquet.metadata.num_rows)
