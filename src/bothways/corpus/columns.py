"""One row of an input -> its id, its text and the columns that are kept beside them, each of one type."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from bothways.corpus.layout import ID, VECTOR
from bothways.data.rows import TEXT, Cells, Raw, RowError, kind_of, row_id, row_text, titled_text
from bothways.errors import ConfigError, DataError

TITLE = "title"
IDS = ("_id", "id")
"""Columns that name a row where nobody says which one does."""
KINDS = {"string": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
"""Types that values of JSON and cells of CSV may have."""
SAMPLE = 1000
"""So many rows at the start of a file say which type a column has."""


@dataclass(frozen=True)
class Kept:
    """A column that is kept. `said` is the type that was asked for, to which values are turned; "" is none."""

    name: str
    said: str = ""


@dataclass(frozen=True)
class Item:
    """A row that can be encoded."""

    id: str
    text: str
    kept: tuple[Any, ...]


def kept_columns(names: Iterable[str]) -> tuple[Kept, ...]:
    """The columns that `--keep` names, each as NAME or NAME:TYPE. Raises ConfigError for a name that is taken."""
    found = []
    for spelling in names:
        name, colon, said = spelling.rpartition(":")
        column = Kept(name, said) if colon and said in KINDS else Kept(spelling)
        if column.name in (ID, TEXT, VECTOR):
            raise ConfigError(f'--keep {spelling}: the output has a column "{column.name}" of its own. Leave it out.')
        found.append(column)
    names = [column.name for column in found]
    if len(set(names)) < len(names):
        raise ConfigError(f"--keep {' '.join(names)}: a column is named twice. Leave one of them out.")
    return tuple(found)


def item_of(raw: Raw, where: str, text: str, ids: str | None, kept: Mapping[Kept, pa.DataType], most: int) -> Item:
    """What a row says; `where` is the name of its file, which with its number is the id of a row that has none.

    `text` and `ids` name columns. "title" is put in front of the text where the text's column has its usual name.
    Raises RowError for what cannot be used, and for a text of more than `most` bytes.
    """
    row = raw.value
    if isinstance(row, RowError):
        raise row
    found = titled_text(row) if text == TEXT else row_text(row, text)
    # A letter has four bytes at most.
    if 4 * len(found) > most and len(found.encode()) > most:
        raise RowError(f'"{text}" has {len(found.encode()):,} bytes, but may have {most:,} (--max-row-bytes).')
    has_id = ids is not None or (isinstance(row, Mapping) and any(name in row for name in IDS))
    name = row_id(row, *((ids,) if ids else IDS)) if has_id else f"{where}:{raw.number}"
    values = tuple(_typed(row, column, kind) for column, kind in kept.items()) if kept else ()
    return Item(name, found, values)


def type_of(column: Kept, rows: Iterable[Any], where: str) -> pa.DataType:
    """The type of a column in the first rows of a file without types. Raises DataError if they have several."""
    if column.said:
        return KINDS[column.said]
    kinds: dict[str, Any] = {}
    for row in rows:
        value = row.get(column.name) if isinstance(row, Mapping) else None
        kind = _kind_of_cell(value) if isinstance(row, Cells) else _kind_of_value(value)
        if kind:
            kinds.setdefault(kind, value)
    if not kinds or (set(kinds) > {"string"} and all(isinstance(value, str) for value in kinds.values())):
        return KINDS["string"]
    if set(kinds) == {"int", "float"}:
        return KINDS["float"]
    if "" in kinds or "other" in kinds:
        found = kind_of(kinds["other"])
        raise DataError(
            f'{where}: "{column.name}" is {found}; of JSON only texts, numbers, true and false are kept. Leave it out '
            "of --keep, or give Parquet."
        )
    if len(kinds) > 1:
        found = " and ".join(sorted(kinds))
        raise DataError(
            f'{where}: the type of "{column.name}" changes, its first {SAMPLE:,} rows have {found}. '
            f"Say which it is: --keep {column.name}:string."
        )
    return KINDS[next(iter(kinds))]


def _typed(row: Any, column: Kept, kind: pa.DataType) -> Any:
    """The value of a column as its type wants it, None where there is none. Raises RowError."""
    value = row.get(column.name) if isinstance(row, Mapping) else None
    if value is None or (isinstance(row, Cells) and value == "" and kind != KINDS["string"]):
        return None
    if isinstance(row, Cells) and kind != KINDS["string"]:
        value = _of_cell(value)
    if column.said == "string" and not isinstance(value, str):
        return str(value).lower() if isinstance(value, bool) else str(value)
    expected: Any = {KINDS["string"]: str, KINDS["int"]: int, KINDS["float"]: (int, float), KINDS["bool"]: bool}.get(
        kind
    )
    if expected is None:
        return value
    if not isinstance(value, expected) or (isinstance(value, bool) and kind != KINDS["bool"]):
        raise RowError(
            f'"{column.name}" is {kind_of(value)}, but the column is of type {kind}. '
            f"Say which it is with --keep {column.name}:TYPE (string, int, float, bool)."
        )
    if kind == KINDS["int"] and not -(2**63) <= value < 2**63:
        raise RowError(f'"{column.name}" is {value}, which has more than 64 bits. Keep it as {column.name}:string.')
    return float(value) if kind == KINDS["float"] else value


def _kind_of_value(value: Any) -> str:
    kinds = {bool: "bool", int: "int", float: "float", str: "string", type(None): ""}
    return kinds.get(type(value), "other")


def _kind_of_cell(cell: str | None) -> str:
    return _kind_of_value(_of_cell(cell)) if cell else ""


def _of_cell(cell: str) -> Any:
    """The number or truth value that a cell spells, else the cell."""
    if cell in ("true", "false"):
        return cell == "true"
    try:
        if str(int(cell)) == cell:
            return int(cell)
        # What begins with a zero is a code, not a number.
        return cell if cell.lstrip("-")[:1] == "0" and not cell.lstrip("-").startswith("0.") else float(cell)
    except ValueError:
        pass
    try:
        return float(cell) if any(letter.isdigit() for letter in cell) and "_" not in cell else cell
    except ValueError:
        return cell
