"""Sources -> examples, from files of rows, the E5 folder or a BEIR folder."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from bothways.data import e5
from bothways.data.beir import is_beir, read_beir
from bothways.data.examples import row_examples
from bothways.data.formats import ROWS, raw_rows, suffix_of
from bothways.data.reading import OnBadRow, Origin, Rows, Tally, join, stream
from bothways.data.rows import Example, Raw
from bothways.data.sources import Format, Source, as_source
from bothways.errors import ConfigError, DataError

_log = logging.getLogger(__name__)


def read_examples(path: str | Path | Source, on_bad_row: OnBadRow = "raise") -> Rows[Example]:
    """The training rows of a source: `.jsonl`, tables with the same names as columns, the E5 folder, a BEIR folder.

    A row has a query, one or more positives (each becomes an example of its own), perhaps negatives, instructions and a
    score; `data.examples` has the names, `docs/data.md` shows a row of each kind. Other fields are left alone. What a
    folder was taken for is said. Raises DataError with file and row, ConfigError for a source of texts.
    """
    source = as_source(path)
    source.check_for("examples")
    layout, folder = _layout(source), Path(source.path)
    if layout == "beir":
        if source.score_max != 1:
            raise ConfigError(f'{source.name}: "score_max" is for graded pairs; a BEIR folder has none. Leave it out.')
        return read_beir(source, on_bad_row)
    if layout == "rows":
        return _read(source, source.name, source.raw(ROWS, None), on_bad_row)
    return join(_read_part(source, part, on_bad_row) for part in _parts(folder))


def _layout(source: Source) -> Format:
    """How the source is laid out, which is said where it is not plain."""
    folder = Path(source.path)
    if source.format in ("e5", "beir") and not folder.is_dir():
        raise DataError(f"{source.path}: format={source.format}, but there is no such folder.")
    if source.format != "auto":
        return source.format
    if source.is_hub or not folder.is_dir():
        return "rows"
    found: Format = "beir" if is_beir(folder) else "e5" if e5.is_e5(folder) else "rows"
    if found != "rows":
        what = {"beir": "a BEIR folder", "e5": "the E5 folder of 14 data sets"}[found]
        _log.warning("%s: taken for %s. format=rows reads its files as they stand.", source.name, what)
    return found


def _parts(folder: Path) -> list[e5.Part]:
    parts = e5.parts_of(folder)
    rest = e5.left_out(folder, parts)
    if rest:
        _log.warning("%s: left out %s.", folder.name, ", ".join(rest))
    return parts


def _read_part(source: Source, part: e5.Part, on_bad_row: OnBadRow) -> Rows[Example]:
    """The rows of one task, with its instruction, unless the source has one."""
    raws = raw_rows(part.path, suffix_of(part.path, ROWS))
    mine = (raw for raw in raws if part.holds(raw.number))
    of_documents = part.task.instruction if part.task.symmetric else None
    name = f"{source.name}/{part.name}"
    return _read(source, name, [(name, mine)], on_bad_row, part.task.instruction, of_documents)


def _read(
    source: Source,
    name: str,
    files: Iterable[tuple[str, Iterable[Raw]]],
    on_bad_row: OnBadRow,
    of_queries: str | None = None,
    of_documents: str | None = None,
) -> Rows[Example]:
    """Rows with the source's instructions or, where it has none, those given."""
    parse = partial(
        row_examples,
        query_instruction=source.query_instruction or of_queries,
        document_instruction=source.document_instruction or of_documents,
        score_max=source.score_max,
    )
    tally = Tally(most=2**63)
    rows = list(stream(name, files, parse, on_bad_row, tally))
    return Rows(rows, tally.listed, [Origin(name, source.weight, len(rows), tally.skipped, source.policy)])
