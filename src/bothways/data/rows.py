"""What one row means: a JSON value, a line, or the cells of a table -> texts, examples, documents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

TEXT = "text"
"""The column, or field, of a text where nobody says otherwise."""


@dataclass(frozen=True)
class Example:
    """One row of supervised training: `positive` answers `query`; none of the similar `negatives` does.

    Of a graded pair `score` says how well, from 0 (not at all) to 1.
    """

    query: str
    positive: str
    negatives: tuple[str, ...] = ()
    query_instruction: str | None = None
    document_instruction: str | None = None
    score: float | None = None


@dataclass(frozen=True)
class Document:
    """A text to find, its title (where it has one) in front, and the name by which results refer to it."""

    id: str
    text: str


class Cells(dict[str, str]):
    """A row of a CSV file by its header. Every cell is a text, so that an empty one may stand for nothing."""


class RowError(Exception):
    """What is wrong with one row, without file and line: the reader adds those."""


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


def fingerprint(items: Iterable[str | Example | Document]) -> str:
    """SHA-256, in hexadecimal, of the items' contents in their order: what a folder records of the data it saw."""
    digest = hashlib.sha256()
    for item in items:
        row = item if isinstance(item, str) else [value for name, value in vars(item).items() if _counts(name, value)]
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


def row_text(row: Any, column: str = TEXT, *, may_be_empty: bool = False) -> str:
    """The text of a row that is a string, or of its field `column`. Raises RowError."""
    if isinstance(row, str):
        return checked(row, column, may_be_empty)
    _, text = row_field(row, column)
    return checked(text, column, may_be_empty)


def row_id(row: Any, *names: str) -> str:
    """The id under the one of `names` that is there: a text, or a whole number, which becomes one. Raises RowError."""
    name, value = row_field(row, *names)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return checked(value, name)


def row_field(row: Any, *names: str) -> tuple[str, Any]:
    """The one of `names` that the row has, and its value. Raises RowError if it has none of them, or several."""
    found = present(row, names)
    if not found:
        others = f" (or {', '.join(quoted(names[1:]))})" if names[1:] else ""
        raise RowError(f'"{names[0]}"{others} is missing; the row has {", ".join(quoted(row)) or "no field"}.')
    return found, row[found]


def field_text(row: Any, *names: str) -> str:
    """The text under the one of `names` that is there. Raises RowError."""
    name, value = row_field(row, *names)
    return checked(value, name)


def titled_text(row: Any, column: str = TEXT, *, may_be_empty: bool = False) -> str:
    """The text of a row, its title (where it has one) in front; with a title the text may be empty. Raises RowError."""
    title = row.get("title") if isinstance(row, Mapping) else None
    text = row_text(row, column, may_be_empty=may_be_empty or bool(title))
    return f"{checked(title, 'title')} {text}".strip() if title else text


def document_parser(*, may_be_empty: bool = False) -> Callable[[Any, int], list[Document]]:
    """What `read_rows` needs for the documents of one file. Collections for evaluation may hold an empty document."""
    seen: set[str] = set()

    def parse(row: Any, number: int) -> list[Document]:
        has_id = isinstance(row, Mapping) and ("_id" in row or "id" in row)
        name = row_id(row, "_id", "id") if has_id else str(number)
        if name in seen:
            raise RowError(f'the id "{name}" is taken by an earlier row.')
        seen.add(name)
        return [Document(name, titled_text(row, may_be_empty=may_be_empty))]

    return parse


def optional_field(row: Any, *names: str) -> tuple[str, Any]:
    """The one of `names` that the row has, and its value; None where there is none, it is null, or its cell empty.

    Raises RowError if the row has several of them.
    """
    name = present(row, names)
    value = row[name] if name else None
    return name, None if isinstance(row, Cells) and value == "" else value


def present(row: Any, names: Iterable[str]) -> str:
    """The one of `names` that the row has, or "" if it has none. Raises RowError if it has several."""
    if not isinstance(row, Mapping):
        raise RowError(f"expected a JSON object, found {kind_of(row)}.")
    found = [name for name in names if name in row]
    if len(found) > 1:
        raise RowError(f"{' and '.join(quoted(found))} mean the same; the row has both.")
    return found[0] if found else ""


def checked(value: Any, name: str, may_be_empty: bool = False) -> str:
    """The value if it is a text to use. Raises RowError."""
    if not isinstance(value, str):
        raise RowError(f'"{name}" is {kind_of(value)}, expected a text.')
    if not may_be_empty and not value.strip():
        raise RowError(f'"{name}" is empty.')
    # JSON can spell half of a surrogate pair, which no tokenizer accepts.
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise RowError(f'"{name}" holds half of a surrogate pair, which is not a character.')
    return value


def quoted(names: Iterable[str]) -> list[str]:
    """Names as errors show them."""
    return [f'"{name}"' for name in names]


def kind_of(value: Any) -> str:
    """What a value is, in words."""
    kinds = {
        str: "a text",
        bytes: "bytes",
        bool: "true or false",
        list: "a list",
        dict: "an object",
        type(None): "null",
    }
    return kinds.get(type(value), "a number")


def _counts(name: str, value: Any) -> bool:
    """A score that is not given is not part of an example."""
    return name != "score" or value is not None
