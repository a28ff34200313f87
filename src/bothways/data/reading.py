"""Sources -> rows, one by one or as a list. Every bad row is a `DataError` that names file, row and way out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from bothways.data.formats import TEXTS, raw_rows, suffix_of
from bothways.data.rows import TEXT, Document, Raw, RowError, document_parser, row_text
from bothways.data.sources import Policy, Source, as_source, identity
from bothways.errors import ConfigError, DataError

OnBadRow = Literal["raise", "skip"]
Row = TypeVar("Row")
Parse = Callable[..., Iterable[Row]]

WAY_OUT = "Fix the row, or pass --on-bad-row skip (skips are counted and listed)."
LISTED_SKIPS = 10

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """Some rows in a row, and the source they came from."""

    name: str
    weight: float
    rows: int
    skipped: int
    policy: Policy = field(default_factory=Policy)

    @property
    def facts(self) -> dict[str, Any]:
        """What a record says of it: all, but of the policy only what is not the default."""
        known = asdict(self)
        policy = {name: value for name, value in known.pop("policy").items() if value != getattr(Policy, name)}
        return {**known, "policy": policy} if policy else known


class Rows(list[Row]):
    """The rows of some sources; in `skipped` one line for each bad row, in `origins` what came from where."""

    def __init__(self, rows: Iterable[Row] = (), skipped: Iterable[str] = (), origins: Iterable[Origin] = ()) -> None:
        super().__init__(rows)
        self.skipped = list(skipped)
        self.origins = list(origins)


def origins_of(rows: Sequence[Any]) -> list[Origin]:
    """What came from where; nothing of rows that were not read from sources, or were changed since."""
    origins = rows.origins if isinstance(rows, Rows) else []
    return origins if sum(origin.rows for origin in origins) == len(rows) else []


@dataclass
class Tally:
    """How many rows were used and how many were bad, and the first of those in words."""

    kept: int = 0
    skipped: int = 0
    listed: list[str] = field(default_factory=list)
    most: int = LISTED_SKIPS
    """So many bad rows are kept in words."""

    def skip(self, line: str) -> None:
        """Count a bad row."""
        self.skipped += 1
        if len(self.listed) < self.most:
            self.listed.append(line)

    def report(self, name: str) -> None:
        """Warn about what was skipped. Raises DataError if nothing was left."""
        if self.skipped:
            listed = "\n".join(f"  {skip}" for skip in self.listed[:LISTED_SKIPS])
            rest = self.skipped - LISTED_SKIPS
            more = f"\n  and {rest} more" if rest > 0 else ""
            _log.warning("%s: skipped %d bad rows, kept %d.\n%s%s", name, self.skipped, self.kept, listed, more)
        if not self.kept:
            reason = f"all of its {self.skipped} rows are bad" if self.skipped else "it is empty"
            raise DataError(f"{name}: no row to use, {reason}. Give a file with at least one row.")


class Texts:
    """The texts of some sources, streamed anew each time they are walked through, never all in memory."""

    def __init__(self, sources: Sequence[Source | str | Path], on_bad_row: OnBadRow = "raise") -> None:
        """Looks at the first row of every source. Raises DataError for what is missing or lacks its column."""
        _check_on_bad_row(on_bad_row, "texts")
        self.sources = tuple(as_source(source) for source in sources)
        self.on_bad_row: OnBadRow = on_bad_row
        for source in self.sources:
            source.check_for("texts")
            for _, raws in source.raw(TEXTS, source.column):
                next(iter(raws), None)

    def __iter__(self) -> Iterator[str]:
        for source in self.sources:
            yield from self.of(source, Tally())

    def of(self, source: Source, tally: Tally) -> Iterator[str]:
        """The texts of one of the sources, counted in `tally`. Raises DataError at a bad row, unless it is skipped."""
        return _texts(source, self.on_bad_row, tally)

    def fingerprint(self) -> str:
        """SHA-256 of contents, columns and weights of the sources."""
        return identity(self.sources, TEXTS)


def read_texts(path: str | Path | Source, on_bad_row: OnBadRow = "raise", column: str = TEXT) -> Rows[str]:
    """The texts of a source: `.txt`, `.jsonl`, `.csv`, `.tsv`, `.parquet`, a folder or pattern of them, or `hub:ID`.

    A JSON row is a string, or an object with the field `column`; a table has that column. Raises DataError with file
    and row for an empty text, a wrong type, what is malformed, or bytes that are not UTF-8.
    """
    tally = Tally(most=2**63)
    source = as_source(path, column)
    source.check_for("texts")
    rows = list(_texts(source, on_bad_row, tally))
    return Rows(rows, tally.listed, [Origin(source.name, source.weight, len(rows), tally.skipped)])


def read_documents(path: str | Path, on_bad_row: OnBadRow = "raise") -> Rows[Document]:
    """Texts with ids. "_id" or "id" names a row, its number one without; "title" is optional.

    Raises DataError with file and row, also for an id that an earlier row has.
    """
    return read_rows(path, document_parser(), on_bad_row, suffixes=TEXTS, numbered=True)


def join(parts: Iterable[Rows[Row]]) -> Rows[Row]:
    """The rows of several sources as one list."""
    joined: Rows[Row] = Rows()
    for part in parts:
        joined.extend(part)
        joined.skipped.extend(part.skipped)
        joined.origins.extend(part.origins)
    return joined


def read_rows(
    path: str | Path,
    parse: Parse[Row],
    on_bad_row: OnBadRow = "raise",
    *,
    suffixes: tuple[str, ...] = (".jsonl",),
    numbered: bool = False,
    as_lines: bool = False,
    way_out: str = WAY_OUT,
) -> Rows[Row]:
    """Everything that `parse` makes of the rows of a file, in order.

    `parse` gets the JSON value, the line of a text, or the cells of a table by their columns, and with `numbered` also
    the number of the line or row; it raises RowError. `as_lines` gives it lines as texts, whatever the suffix says.
    `way_out` ends the message about a bad row.
    Raises DataError for a missing file, a suffix that is not in `suffixes`, a file without a usable row, and, unless
    `on_bad_row` is "skip", for the first bad row.
    """
    _check_on_bad_row(on_bad_row, str(path))
    path = Path(path)
    suffix = suffix_of(path, suffixes)
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    tally = Tally(most=2**63)
    raws = raw_rows(path, ".txt" if as_lines else suffix)
    rows = list(_parsed(path.name, raws, parse, on_bad_row, tally, numbered=numbered, way_out=way_out))
    tally.report(path.name)
    return Rows(rows, tally.listed)


def stream(
    name: str, files: Iterable[tuple[str, Iterable[Raw]]], parse: Parse[Row], on_bad_row: OnBadRow, tally: Tally
) -> Iterator[Row]:
    """What `parse` makes of the rows of some files, each with its name; `name` is that of the whole in the report.

    Raises DataError for the first bad row, unless it is skipped, and if there is nothing.
    """
    _check_on_bad_row(on_bad_row, name)
    for file, raws in files:
        yield from _parsed(file, raws, parse, on_bad_row, tally)
    tally.report(name)


def _texts(source: Source, on_bad_row: OnBadRow, tally: Tally) -> Iterator[str]:
    column = source.column
    files = source.raw(TEXTS, column)
    return stream(source.name, files, lambda row: (row_text(row, column),), on_bad_row, tally)


def _parsed(
    name: str,
    raws: Iterable[Raw],
    parse: Parse[Row],
    on_bad_row: OnBadRow,
    tally: Tally,
    *,
    numbered: bool = False,
    way_out: str = WAY_OUT,
) -> Iterator[Row]:
    for raw in raws:
        try:
            if isinstance(raw.value, RowError):
                raise raw.value
            rows = list(parse(raw.value, raw.number) if numbered else parse(raw.value))
        except RowError as problem:
            if on_bad_row == "raise":
                raise DataError(f"{name} {raw.place}: {problem} {way_out}") from None
            tally.skip(f"{raw.place}: {problem}")
            continue
        tally.kept += len(rows)
        yield from rows


def _check_on_bad_row(on_bad_row: Any, where: str) -> None:
    if on_bad_row not in ("raise", "skip"):
        raise ConfigError(f'read {where}: on_bad_row is "{on_bad_row}". Use "raise" or "skip".')
