"""Files -> texts, examples and documents. Every bad row is a `DataError` that names the file and the line.

Suffixes: `.txt` (one text a line, blank lines separate and are not rows) and `.jsonl` (one JSON value a line), each
plain or with `.gz` behind it. Files are UTF-8; a byte order mark at the start is dropped.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from bothways.errors import ConfigError, DataError

OnBadRow = Literal["raise", "skip"]
Row = TypeVar("Row")

WAY_OUT = "Fix the row, or pass --on-bad-row skip (skips are counted and listed)."
LISTED_SKIPS = 10

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Example:
    """One row of supervised training: `positive` answers `query`; none of the similar `negatives` does."""

    query: str
    positive: str
    negatives: tuple[str, ...] = ()
    query_instruction: str | None = None
    document_instruction: str | None = None


@dataclass(frozen=True)
class Document:
    """A text to find, its title (where it has one) in front, and the name by which results refer to it."""

    id: str
    text: str


class Rows(list[Row]):
    """The rows of a file, and in `skipped` one line for each bad row that was left out."""

    def __init__(self, rows: Iterable[Row] = (), skipped: Iterable[str] = ()) -> None:
        super().__init__(rows)
        self.skipped = list(skipped)


class RowError(Exception):
    """What is wrong with one row, without file and line: the reader adds those."""


def read_texts(path: str | Path, on_bad_row: OnBadRow = "raise") -> Rows[str]:
    """The texts of a `.txt` or `.jsonl` file. A JSON row is a string, or an object with "text".

    Raises DataError with file and line for an empty text, a wrong type, malformed JSON or bytes that are not UTF-8.
    """
    return read_rows(path, lambda row: [row_text(row)], on_bad_row, suffixes=(".txt", ".jsonl"))


def read_examples(path: str | Path, on_bad_row: OnBadRow = "raise") -> Rows[Example]:
    """The training rows of a `.jsonl` file of objects.

    Fields: "query" or "anchor"; "positive" or "pos", a text or a list of texts, each of which becomes an example of its
    own; "negatives", "negative" or "neg" (optional), a text or a list; "query_instruction" or "instruction", and
    "document_instruction" (optional). Other fields are left alone. Raises DataError with file and line.
    """
    return read_rows(path, _examples, on_bad_row)


def read_documents(path: str | Path, on_bad_row: OnBadRow = "raise") -> Rows[Document]:
    """Texts with ids. "_id" or "id" names a JSON row, the line number one without; "title" is optional.

    Raises DataError with file and line, also for an id that an earlier row has.
    """
    return read_rows(path, document_parser(), on_bad_row, suffixes=(".txt", ".jsonl"), numbered=True)


def document_parser(*, may_be_empty: bool = False) -> Callable[[Any, int], list[Document]]:
    """What `read_rows` needs for the documents of one file. Collections for evaluation may hold an empty document."""
    seen: set[str] = set()

    def parse(row: Any, line: int) -> list[Document]:
        has_id = isinstance(row, Mapping) and ("_id" in row or "id" in row)
        name = row_id(row, "_id", "id") if has_id else str(line)
        if name in seen:
            raise RowError(f'the id "{name}" is taken by an earlier row.')
        seen.add(name)
        title = row.get("title") if isinstance(row, Mapping) else None
        text = row_text(row, may_be_empty=may_be_empty or bool(title))
        return [Document(name, f"{_checked(title, 'title')} {text}".strip() if title else text)]

    return parse


def fingerprint(items: Iterable[str | Example | Document]) -> str:
    """SHA-256, in hexadecimal, of the items' contents in their order: what a folder records of the data it saw."""
    digest = hashlib.sha256()
    for item in items:
        row = item if isinstance(item, str) else list(vars(item).values())
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


def read_rows(
    path: str | Path,
    parse: Callable[..., Iterable[Row]],
    on_bad_row: OnBadRow = "raise",
    *,
    suffixes: tuple[str, ...] = (".jsonl",),
    numbered: bool = False,
    way_out: str = WAY_OUT,
) -> Rows[Row]:
    """Everything that `parse` makes of the rows of a file, in order.

    `parse` gets the JSON value, or the line of a text, and with `numbered` also the line number; it raises RowError.
    `way_out` ends the message about a bad row.
    Raises DataError for a missing file, a suffix that is not in `suffixes`, a file without a usable row, and, unless
    `on_bad_row` is "skip", for the first bad row.
    """
    if on_bad_row not in ("raise", "skip"):
        raise ConfigError(f'read {path}: on_bad_row is "{on_bad_row}". Use "raise" or "skip".')
    path = Path(path)
    is_json = _suffix(path, suffixes) == ".jsonl"
    rows: Rows[Row] = Rows()
    for line, raw in _lines(path):
        try:
            text = _decoded(raw)
            if not text.strip():
                continue
            row = _json(text) if is_json else text
            rows.extend(parse(row, line) if numbered else parse(row))
        except RowError as problem:
            if on_bad_row == "raise":
                raise DataError(f"{path.name} line {line}: {problem} {way_out}") from None
            rows.skipped.append(f"line {line}: {problem}")
    _report(path, rows)
    return rows


def row_text(row: Any, *, may_be_empty: bool = False) -> str:
    """The text of a row that is a string or has "text". Raises RowError."""
    if isinstance(row, str):
        return _checked(row, "text", may_be_empty)
    _, text = row_field(row, "text")
    return _checked(text, "text", may_be_empty)


def row_id(row: Any, *names: str) -> str:
    """The id under the one of `names` that is there: a text, or a whole number, which becomes one. Raises RowError."""
    name, value = row_field(row, *names)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _checked(value, name)


def row_field(row: Any, *names: str) -> tuple[str, Any]:
    """The one of `names` that the row has, and its value. Raises RowError if it has none of them, or several."""
    found = _present(row, names)
    if not found:
        others = f" (or {', '.join(_quoted(names[1:]))})" if names[1:] else ""
        raise RowError(f'"{names[0]}"{others} is missing; the row has {", ".join(_quoted(row)) or "no field"}.')
    return found, row[found]


def field_text(row: Any, *names: str) -> str:
    """The text under the one of `names` that is there. Raises RowError."""
    name, value = row_field(row, *names)
    return _checked(value, name)


def _examples(row: Any) -> list[Example]:
    query = field_text(row, "query", "anchor")
    name, found = row_field(row, "positive", "pos")
    positives = _texts(found, name)
    if not positives:
        raise RowError(f'"{name}" is an empty list.')
    name = _present(row, ("negatives", "negative", "neg"))
    negatives = _texts(row[name], name) if name and row[name] is not None else ()
    instructions = [
        _checked(row[name], name) if name and row[name] is not None else None
        for name in (
            _present(row, ("query_instruction", "instruction")),
            _present(row, ("document_instruction",)),
        )
    ]
    return [Example(query, positive, negatives, *instructions) for positive in positives]


def _present(row: Any, names: tuple[str, ...]) -> str:
    """The one of `names` that the row has, or "" if it has none."""
    if not isinstance(row, Mapping):
        raise RowError(f"expected a JSON object, found {_kind(row)}.")
    found = [name for name in names if name in row]
    if len(found) > 1:
        raise RowError(f"{' and '.join(_quoted(found))} mean the same; the row has both.")
    return found[0] if found else ""


def _texts(value: Any, name: str) -> tuple[str, ...]:
    if isinstance(value, list):
        return tuple(_checked(item, name) for item in value)
    return (_checked(value, name),)


def _checked(value: Any, name: str, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        raise RowError(f'"{name}" is {_kind(value)}, expected a text.')
    if not may_be_empty and not value.strip():
        raise RowError(f'"{name}" is empty.')
    # JSON can spell half of a surrogate pair, which no tokenizer accepts.
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise RowError(f'"{name}" holds half of a surrogate pair, which is not a character.')
    return value


def _suffix(path: Path, allowed: tuple[str, ...]) -> str:
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix not in allowed:
        wanted = " or ".join(allowed)
        found = "".join(path.suffixes[-2:])
        raise DataError(f'{path.name}: unknown suffix "{found}". Expected {wanted}, plain or .gz.')
    return suffix


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    line = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for line, raw in enumerate(file, start=1):
                yield line, raw.removeprefix(b"\xef\xbb\xbf") if line == 1 else raw
    except (gzip.BadGzipFile, EOFError, zlib.error) as problem:
        raise DataError(f"{path.name} after line {line}: not a whole gzip file ({problem}). Make it again.") from None


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as problem:
        found = raw[problem.start : problem.start + 1].hex()
        raise RowError(f"byte {problem.start + 1} of the line (0x{found}) is not UTF-8.") from None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as problem:
        raise RowError(f"malformed JSON: {problem}.") from None


def _report(path: Path, rows: Rows[Any]) -> None:
    if rows.skipped:
        listed = "\n".join(f"  {skip}" for skip in rows.skipped[:LISTED_SKIPS])
        rest = len(rows.skipped) - LISTED_SKIPS
        more = f"\n  and {rest} more" if rest > 0 else ""
        _log.warning("%s: skipped %d bad rows, kept %d.\n%s%s", path.name, len(rows.skipped), len(rows), listed, more)
    if not rows:
        reason = f"all of its {len(rows.skipped)} rows are bad" if rows.skipped else "it is empty"
        raise DataError(f"{path.name}: no row to use, {reason}. Give a file with at least one row.")


def _quoted(names: Iterable[str]) -> list[str]:
    return [f'"{name}"' for name in names]


def _kind(value: Any) -> str:
    kinds = {str: "a text", bool: "true or false", list: "a list", dict: "an object", type(None): "null"}
    return kinds.get(type(value), "a number")
