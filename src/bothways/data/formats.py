"""Files -> raw rows, one at a time, each with its place; what cannot be read of a row comes as a RowError in its stead.

Suffixes: `.txt` (one text a line, blank lines separate and are not rows), `.jsonl` (one JSON value a line), `.csv` and
`.tsv` (a header, fields quoted by `"` where they need it, also over several lines), each plain or with `.gz` behind it,
and `.parquet`. Text is UTF-8; a byte order mark at the start is dropped.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bothways.data.rows import Cells, RowError
from bothways.errors import DataError, did_you_mean

TABLES = (".csv", ".tsv", ".parquet")
ROWS = (".jsonl", *TABLES)
TEXTS = (".txt", *ROWS)
ROWS_AT_ONCE = 1024
"""Rows of a Parquet file that are Python objects at a time."""
LONGEST_CELL = 2**31 - 1
"""Letters of a CSV field; the csv module stops at 131,072 unless told otherwise."""


class Raw(NamedTuple):
    """A row as it stands in its file, or what is wrong with it."""

    number: int
    """Of a line in a file of lines, of a row in a table, from 1."""
    line: int
    """Where the row begins; 0 where there are no lines."""
    value: Any

    @property
    def place(self) -> str:
        """The place in words, as errors name it."""
        if not self.line:
            return f"row {self.number:d}"
        return f"line {self.line}" if self.line == self.number else f"row {self.number} (line {self.line})"


def raw_rows(path: Path, suffix: str, column: str | None = None) -> Iterator[Raw]:
    """The rows of a file that has this suffix. Of a table, `column` alone is read, and must be there; None: all.

    Raises DataError for a file that is missing or broken, or a column that is not there.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    if suffix == ".parquet":
        return _parquet(path, column)
    if suffix in (".csv", ".tsv"):
        return _csv(path, "\t" if suffix == ".tsv" else ",", column)
    return lines(path, json_values=suffix == ".jsonl")


def suffix_of(path: Path, allowed: tuple[str, ...]) -> str:
    """The suffix that says how a file is read. Raises DataError if it is none of those allowed."""
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix not in allowed or (suffix == ".parquet" and path.suffix == ".gz"):
        first, last = ", ".join(allowed[:-1]), allowed[-1]
        found = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
        wanted = f"{first} or {last}" if first else last
        raise DataError(f'{path.name}: unknown suffix "{found}". Expected {wanted}, plain or .gz.')
    return suffix


def check_column(name: str, column: str | None, columns: Iterable[str]) -> None:
    """Raises DataError, naming the columns there are and the nearest one, if `column` is not among them."""
    known = list(columns)
    if column is None or column in known:
        return
    there = ", ".join(f'"{item}"' for item in known) or "no column"
    near = did_you_mean(column, known)
    hint = f" {near}" if near.startswith("Did") else " Name one of them with --column."
    raise DataError(f'{name}: there is no column "{column}"; it has {there}.{hint}')


def lines(path: Path, *, json_values: bool) -> Iterator[Raw]:
    """Every line that is not blank, as a text or, with `json_values`, as what it says."""
    for line, raw in _raw_lines(path):
        try:
            text = _decoded(raw).rstrip("\r\n")
            if text.strip():
                yield Raw(line, line, _json(text) if json_values else text)
        except RowError as problem:
            yield Raw(line, line, problem)


def _csv(path: Path, delimiter: str, column: str | None) -> Iterator[Raw]:
    csv.field_size_limit(LONGEST_CELL)
    undecoded: list[RowError] = []
    reader = csv.reader(_text_lines(path, undecoded), delimiter=delimiter, strict=True)
    header = _header(path, reader, undecoded)
    if header is None:
        return
    check_column(path.name, column, filter(None, header))
    number = 0
    while True:
        line = reader.line_num + 1
        value: Any
        try:
            cells = next(reader, None)
            if cells is None:
                return
            if not cells:
                continue
            value = _by_header(cells, header)
        except (csv.Error, RowError) as problem:
            value = RowError(f"malformed CSV: {problem}.") if isinstance(problem, csv.Error) else problem
        if undecoded:
            value = undecoded[0]
            undecoded.clear()
        number += 1
        yield Raw(number, line, value)


def _header(path: Path, reader: Iterator[list[str]], undecoded: list[RowError]) -> list[str] | None:
    """The first line that is not blank, None if there is none. Columns without a name are left out of every row."""
    try:
        names = next((cells for cells in reader if cells), None)
    except csv.Error as problem:
        raise DataError(f"{path.name}: its header is malformed CSV: {problem}.") from None
    if undecoded:
        raise DataError(f"{path.name}: in its header, {undecoded[0]}")
    twice = [name for name in names or () if name and (names or []).count(name) > 1]
    if twice:
        raise DataError(f'{path.name}: its header has "{twice[0]}" twice. Rename one of the columns.')
    return names


def _by_header(cells: list[str], header: list[str]) -> Cells:
    if len(cells) != len(header):
        raise RowError(f"found {len(cells)} fields, but the header has {len(header)}.")
    return Cells((name, cell) for name, cell in zip(header, cells, strict=True) if name)


def _parquet(path: Path, column: str | None) -> Iterator[Raw]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        # Unbuffered, so that not more than the pages at hand are in memory, however large a row group is.
        with pq.ParquetFile(path, memory_map=True, pre_buffer=False) as file:
            check_column(path.name, column, file.schema_arrow.names)
            wanted = None if column is None else [column]
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=wanted):
                for value in _values(batch):
                    number += 1
                    yield Raw(number, 0, value)
    except (pa.ArrowException, OSError) as problem:
        raise DataError(
            f"{path.name} after row {number}: not a whole Parquet file ({problem}). Make it again."
        ) from None


def _values(batch: Any) -> list[Any]:
    """The rows of a batch; where a text in it is not UTF-8, only its own row is bad."""
    try:
        values: list[Any] = batch.to_pylist()
        return values
    except UnicodeDecodeError:
        return [_value(batch.slice(i, 1)) for i in range(batch.num_rows)]


def _value(row: Any) -> Any:
    for name, cells in zip(row.schema.names, row.columns, strict=True):
        try:
            cells.to_pylist()
        except UnicodeDecodeError as problem:
            found = problem.object[problem.start : problem.start + 1].hex()
            return RowError(f'"{name}": byte {problem.start + 1} (0x{found}) is not UTF-8.')
    return row.to_pylist()[0]


def _raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    line = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for line, raw in enumerate(file, start=1):
                yield line, raw.removeprefix(b"\xef\xbb\xbf") if line == 1 else raw
    except (gzip.BadGzipFile, EOFError, zlib.error) as problem:
        raise DataError(f"{path.name} after line {line}: not a whole gzip file ({problem}). Make it again.") from None


def _text_lines(path: Path, undecoded: list[RowError]) -> Iterator[str]:
    """Lines for the csv module, which cannot be told about a bad one: what is wrong is put into `undecoded`."""
    for _, raw in _raw_lines(path):
        try:
            yield _decoded(raw)
        except RowError as problem:
            undecoded.append(problem)
            yield raw.decode("utf-8", errors="replace")


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as problem:
        found = raw[problem.start : problem.start + 1].hex()
        raise RowError(f"byte {problem.start + 1} of the line (0x{found}) is not UTF-8.") from None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as problem:
        raise RowError(f"malformed JSON: {problem}.") from None
