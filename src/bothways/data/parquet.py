"""The rows of Parquet files, some of them at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from bothways.data.rows import Raw, RowError
from bothways.data.streams import DamagedError, Place, is_url, name_of, open_raw

ROWS_AT_ONCE = 1024
"""Rows that are Python objects at a time."""


@contextmanager
def opened(place: Place) -> Iterator[Any]:
    """The file (pyarrow.parquet.ParquetFile). Raises DamagedError if it is not a whole one.

    Unbuffered, so that not more than the pages at hand are in memory, however large a row group is.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if is_url(place):
            file = pq.ParquetFile(open_raw(place), pre_buffer=False)
        else:
            file = pq.ParquetFile(place, memory_map=True, pre_buffer=False)
    except (pa.ArrowException, OSError) as problem:
        raise DamagedError(
            f"{name_of(place)} after row 0: not a whole Parquet file ({problem}). Make it again."
        ) from None
    try:
        yield file
    finally:
        file.close(force=True)


def parquet_rows(file: Any, columns: Sequence[str] | None = None, start: int = 0) -> Iterator[Raw]:
    """The rows of an opened file after the first `start`, with these columns; None: all.

    Row groups before them are not read. What cannot be read of a row group comes as one RowError for each of its rows.
    """
    import pyarrow as pa

    number = 0
    for group in range(file.num_row_groups):
        first, number = number, number + file.metadata.row_group(group).num_rows
        if number <= start:
            continue
        done = max(start - first, 0)
        place = 0
        try:
            for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=columns):
                batch, place = batch.slice(max(done - place, 0)), place + batch.num_rows
                for value in _values(batch):
                    done += 1
                    yield Raw(first + done, 0, value)
        except (pa.ArrowException, OSError) as problem:
            reason = RowError(f"its row group cannot be read ({' '.join(str(problem).split())}).")
            yield from (Raw(lost, 0, reason) for lost in range(first + done + 1, number + 1))


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
