"""The LanceDB table of a corpus: written from the parts in a stream, asked for the nearest rows, with filters."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Shaped

from bothways.corpus.comparing import as_held, held_type, metric, scores
from bothways.corpus.layout import ID, TEXT, VECTOR, Manifest, batches, path_of, vectors_of
from bothways.errors import ConfigError, DataError, did_you_mean

TABLE = "vectors"
ROW, SCORE = "_row", "_score"
"""The number of a row in the corpus, from 0, which is a column of the table; and what a found row is given."""
TAKEN = (ROW, SCORE, "_distance", "_rowid", "_rowaddr")
SPARE = 16
"""More rows than are asked for: distances come back rounded, the scores of these few are computed once more."""


@dataclass(frozen=True)
class Probing:
    """How much of an ANN index is searched, in LanceDB's terms; as it stands: of an exact table, which has none."""

    nprobes: int = 1
    """Partitions that are looked into."""
    refine_factor: int = 1
    """So many times more rows than are wanted are compared by their true vectors."""


def lancedb() -> Any:
    """The package. Raises ConfigError if it is not installed."""
    # It tells about every table it makes. Read once, when it is imported.
    os.environ.setdefault("LANCEDB_LOG", "error")
    try:
        import lancedb as package
    except ImportError:
        raise ConfigError("search needs lancedb, which is not installed: pip install 'bothways[corpus]'.") from None
    return package


def open_table(place: Path) -> Any:
    """The table in a folder."""
    return lancedb().connect(str(place)).open_table(TABLE)


def write_table(place: Path, folder: Path, manifest: Manifest, columns: Sequence[str] | None = None) -> Any:
    """A table in `place` with all rows of the corpus in `folder`, and some of its `columns` or all; in a stream.

    Raises DataError for a corpus without a row or with parts that differ, ConfigError for a column that cannot be one.
    """
    if not manifest.rows:
        raise DataError(f"{folder}: no vector is in it, so there is nothing to search. Encode something first.")
    kept = known_columns(manifest.columns, manifest.columns if columns is None else columns, "columns")
    for name in kept:
        if "." in name or name in TAKEN:
            raise ConfigError(
                f'{folder}: LanceDB allows no column called "{name}". Name the others: bothways index {folder} '
                "--columns NAME ..., or encode the corpus again with another name."
            )
    names = [ID, *([TEXT] if manifest.texts else []), *kept]
    schema = _schema(folder, manifest, names)
    package = lancedb()
    reader = pa.RecordBatchReader.from_batches(schema, _held(folder, manifest, names, schema))
    table = package.connect(str(place)).create_table(TABLE, data=reader)
    found = table.count_rows()
    if found != manifest.rows:
        raise DataError(
            f"{folder}: {found:,} rows are in its parts, its manifest says {manifest.rows:,}. Encode again."
        )
    return table


def known_columns(known: Sequence[str], wanted: Sequence[str], where: str) -> list[str]:
    """`wanted`, each once. Raises ConfigError for one that is not `known`."""
    for name in wanted:
        if name not in known:
            way_out = did_you_mean(name, known) if known else "It has none beside id and text."
            raise ConfigError(f'{where}: the corpus has no column "{name}". {way_out}')
    return list(dict.fromkeys(wanted))


def check_where(table: Any, where: str) -> None:
    """Raises ConfigError for a filter that is no condition on the table's columns."""
    # LanceDB reads a condition and leaves what stands behind it unread; inside another expression nothing can be left.
    for said, condition in ((None, where), ("it goes on where the condition has ended", f"CAST({where} AS BOOLEAN)")):
        try:
            table.search().where(condition).limit(1).explain_plan()
        except (ValueError, RuntimeError) as problem:
            reason = said or _reason(str(problem), table)
            raise ConfigError(f"where \"{where}\": {reason}. Expected such as: year > 2000 AND lang = 'en'.") from None


def nearest(
    table: Any,
    manifest: Manifest,
    query: Shaped[np.ndarray[Any, Any], " held"],
    k: int,
    *,
    probing: Probing | None = None,
    where: str | None = None,
    columns: Sequence[str] = (),
) -> pa.Table:
    """The `k` nearest rows, or as many as there are, best first, of equal ones the earlier first.

    With `where` only the rows that it is true of are looked at. The result has `columns`, the row's number ROW and its
    SCORE, which is that of the stored vectors, never of an index's rounded ones. A vector of zeros is never found.
    """
    asked = table.search(query, vector_column_name=VECTOR).distance_type(metric(manifest.precision))
    asked = asked.select([ROW, *columns, VECTOR, "_distance"]).limit(k + SPARE)
    if where is not None:
        asked = asked.where(where, prefilter=True)
    if probing is not None:
        asked = asked.nprobes(probing.nprobes)
        asked = asked.refine_factor(probing.refine_factor) if probing.refine_factor > 1 else asked
    found = asked.to_arrow()
    if probing is not None and len(found) < k:
        # Behind a narrow filter, or for a large k, as many more partitions as it takes.
        found = asked.maximum_nprobes(0).to_arrow()
    given = scores(query[None], vectors_of(found[VECTOR]), manifest.precision, manifest.dim)[0]
    order = np.lexsort((found[ROW].to_numpy(), -given))[:k]
    return found.drop_columns([VECTOR, "_distance"]).append_column(SCORE, pa.array(given)).take(pa.array(order))


def _schema(folder: Path, manifest: Manifest, names: Sequence[str]) -> pa.Schema:
    """The table's columns. Every part is looked at: errors in the stream would come out as LanceDB's."""
    types: dict[str, pa.DataType] = {}
    for part in manifest.parts:
        try:
            stored = pq.read_schema(path_of(folder, part))
        except pa.ArrowInvalid as problem:
            raise DataError(f"{folder}: {part.file} cannot be read ({problem}). Encode the corpus again.") from None
        for name in [*names, VECTOR]:
            found = stored.field(name).type if name in stored.names else None
            if found is None or types.setdefault(name, found) != found:
                before = f", {types[name]} before" if name in types else ""
                others = f"Index the others (bothways index {folder} --columns NAME ...), or encode the corpus again."
                way_out = others if name in manifest.columns else "Encode the corpus again."
                raise DataError(f'{folder}: column "{name}" is {found or "missing"} in {part.file}{before}. {way_out}')
    types[VECTOR] = pa.list_(held_type(manifest.precision), manifest.stored_dim)
    return pa.schema([(ROW, pa.int64()), *types.items()])


def _held(folder: Path, manifest: Manifest, names: list[str], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    number = 0
    for batch in batches(folder, manifest, [*names, VECTOR]):
        held = as_held(vectors_of(batch[VECTOR]), manifest.precision)
        flat = pa.array(held.ravel(), held_type(manifest.precision))
        vectors = pa.FixedSizeListArray.from_arrays(flat, manifest.stored_dim)
        numbers = pa.array(np.arange(number, number + len(batch)))
        number += len(batch)
        yield pa.record_batch([numbers, *(batch[name] for name in names), vectors], schema=schema)


def _reason(said: str, table: Any) -> str:
    """What LanceDB says, without its own places and with the nearest column."""
    unknown = re.search(r"No field named [`\"]?(.+?)[`\"]?\. ", said)
    if unknown:
        known = [name for name in table.schema.names if name not in (ROW, VECTOR)]
        return f'the corpus has no column "{unknown[1]}". {did_you_mean(unknown[1], known).rstrip(".")}'
    plain = re.sub(r", /\S+:\d+:\d+.*", "", said.replace("Invalid input, ", ""), flags=re.DOTALL)
    plain = re.sub(r"Error parsing statement: .*?\(sql parser error: (.*)\)", r"\1", plain, flags=re.DOTALL)
    return " ".join(plain.split())[:300].rstrip(".")
