"""Files -> raw rows, one at a time, each with its place; what cannot be read of a row comes as a RowError in its stead.

Suffixes: `.txt` (one text a line, blank lines separate and are not rows), `.jsonl` (one JSON value a line), `.csv` and
`.tsv` (a header, fields quoted by `"` where they need it, also over several lines), each plain or with `.gz`, `.bz2`,
`.xz` or `.zst` behind it, and `.parquet`. Text is UTF-8; a byte order mark at the start is dropped.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from bothways.data.parquet import opened, parquet_rows
from bothways.data.rows import Cells, Raw, RowError
from bothways.data.streams import Lines, LongLine, Place, is_file, name_of, split_suffix
from bothways.errors import DataError, did_you_mean

TABLES = (".csv", ".tsv", ".parquet")
ROWS = (".jsonl", *TABLES)
TEXTS = (".txt", *ROWS)
LONGEST_CELL = 2**31 - 1
"""Letters of a CSV field; the csv module stops at 131,072 unless told otherwise."""


def raw_rows(place: Place, suffix: str, column: str | None = None) -> Iterator[Raw]:
    """The rows of a file that has this suffix. Of a table, `column` alone is read, and must be there; None: all.

    Raises DataError for a file that is missing or broken, or a column that is not there.
    """
    if not is_file(place):
        raise DataError(f"{place}: no such file.")
    return _parquet(place, column) if suffix == ".parquet" else _text(place, suffix, column)


def suffix_of(place: Place, allowed: tuple[str, ...]) -> str:
    """The suffix that says how a file is read. Raises DataError if it is none of those allowed."""
    suffix, compression = split_suffix(place)
    if suffix not in allowed or (suffix == ".parquet" and compression):
        first, last = ", ".join(allowed[:-1]), allowed[-1]
        wanted = f"{first} or {last}" if first else last
        raise DataError(
            f'{name_of(place)}: unknown suffix "{suffix}{compression}". '
            f"Expected {wanted}, plain or .gz, .bz2, .xz or .zst (but .parquet)."
        )
    return suffix


def check_column(name: str, column: str | None, columns: Iterable[str], flag: str = "--column") -> None:
    """Raises DataError, naming the columns there are and the nearest one, if `column` is not among them."""
    known = list(columns)
    if column is None or column in known:
        return
    there = ", ".join(f'"{item}"' for item in known) or "no column"
    near = did_you_mean(column, known)
    hint = f" {near}" if near.startswith("Did") else f" Name one of them with {flag}."
    raise DataError(f'{name}: there is no column "{column}"; it has {there}.{hint}')


def text_rows(
    lines: Lines, suffix: str, header: Sequence[str] | None = None, row: int = 0, *, values: bool = True
) -> Iterator[Raw]:
    """The rows of some lines from where they stand; of a table, with its `header`, of which `row` rows lie before.

    Without `values` what stands in the rows may stay unread: as many rows come, at the same places.
    """
    if suffix in (".csv", ".tsv"):
        return _csv(lines, suffix, header or [], row)
    return _of_lines(lines, json_values=values and suffix == ".jsonl")


def _of_lines(lines: Lines, *, json_values: bool) -> Iterator[Raw]:
    """Every line that is not blank, as a text or, with `json_values`, as what it says."""
    for raw in lines:
        line = lines.line
        try:
            text = _decoded(raw, lines).rstrip("\r\n")
            if text.strip():
                yield Raw(line, line, _json(text) if json_values else text)
        except RowError as problem:
            yield Raw(line, line, problem)


def header_of(lines: Lines, suffix: str) -> list[str] | None:
    """Of a table the first line that is not blank, None if there is none or it is no table.

    Columns without a name are left out of every row. Raises DataError for a header that cannot be used.
    """
    if suffix not in (".csv", ".tsv"):
        return None
    source = _CSVLines(lines)
    try:
        names = next((cells for cells in _reader(source, suffix) if cells), None)
    except csv.Error as problem:
        raise DataError(f"{lines.name}: its header is malformed CSV: {problem}.") from None
    if source.bad:
        raise DataError(f"{lines.name}: in its header, {source.bad[0]}")
    twice = [name for name in names or () if name and (names or []).count(name) > 1]
    if twice:
        raise DataError(f'{lines.name}: its header has "{twice[0]}" twice. Rename one of the columns.')
    return names


def _text(place: Place, suffix: str, column: str | None) -> Iterator[Raw]:
    lines = Lines(place)
    try:
        header = header_of(lines, suffix)
        if header is not None:
            check_column(lines.name, column, filter(None, header))
        yield from text_rows(lines, suffix, header)
    finally:
        lines.close()


def _parquet(place: Place, column: str | None) -> Iterator[Raw]:
    with opened(place) as file:
        check_column(name_of(place), column, file.schema_arrow.names)
        yield from parquet_rows(file, None if column is None else [column])


def _csv(lines: Lines, suffix: str, header: Sequence[str], number: int) -> Iterator[Raw]:
    source = _CSVLines(lines)
    reader = _reader(source, suffix)
    while True:
        line = lines.line + 1
        source.begin()
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
        number += 1
        yield Raw(number, line, source.bad[0] if source.bad else value)


def _reader(source: Iterator[str], suffix: str) -> Iterator[list[str]]:
    csv.field_size_limit(LONGEST_CELL)
    return csv.reader(source, delimiter="\t" if suffix == ".tsv" else ",", strict=True)


def _by_header(cells: list[str], header: Sequence[str]) -> Cells:
    if len(cells) != len(header):
        raise RowError(f"found {len(cells)} fields, but the header has {len(header)}.")
    return Cells((name, cell) for name, cell in zip(header, cells, strict=True) if name)


class _CSVLines:
    """Lines for the csv module, which cannot be told about a bad one: what is wrong with a row is put into `bad`."""

    def __init__(self, lines: Lines) -> None:
        self.lines, self.bad, self.bytes = lines, list[RowError](), 0

    def begin(self) -> None:
        """A row begins."""
        self.bad, self.bytes = [], 0

    def __iter__(self) -> _CSVLines:
        return self

    def __next__(self) -> str:
        raw = next(self.lines)
        self.bytes += raw.bytes if isinstance(raw, LongLine) else len(raw)
        if isinstance(raw, LongLine):
            self.bad.append(_too_long(self.bytes, self.lines))
            # What stands for the line opens or closes a field as the line itself does.
            return '"\n' if raw.quotes % 2 else "x\n"
        if self.bytes > self.lines.max_bytes:
            # Only a field in quotes goes on over lines. Closed here, one whose quote is missing takes no more with it.
            self.bad.append(_too_long(self.bytes, self.lines))
            return '"\n'
        try:
            return _decoded(raw, self.lines)
        except RowError as problem:
            self.bad.append(problem)
            return raw.decode("utf-8", errors="replace")


def _too_long(found: int, lines: Lines) -> RowError:
    return RowError(f"it has {found:,} bytes, but a row may have {lines.max_bytes:,} (--max-row-bytes).")


def _decoded(raw: bytes | LongLine, lines: Lines) -> str:
    if isinstance(raw, LongLine):
        raise _too_long(raw.bytes, lines)
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
