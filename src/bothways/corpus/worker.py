"""The worker, the same under every engine: a unit -> its rows -> their vectors -> one part, whole or not there."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa

from bothways.background import ahead
from bothways.corpus.columns import IDS, Item, item_of
from bothways.corpus.inputs import Rejected, Unit
from bothways.corpus.job import Job
from bothways.corpus.parquet import PartWriter, batch_of, whole
from bothways.corpus.units import Reader
from bothways.data.formats import check_column
from bothways.data.reading import WAY_OUT
from bothways.data.rows import Raw, RowError
from bothways.encoding import Asked
from bothways.errors import DataError

ITEMS_AT_ONCE = 2048
"""Texts encoded and written as one row group: what stays in memory beside the model, twice ..."""
LETTERS_AT_ONCE = 1 << 25
"""... or fewer of them, where they are long."""


@dataclass(frozen=True)
class Done:
    """What has become of a unit."""

    unit: int
    rows: int
    rejected: int


@dataclass
class Batch:
    """Some items, with the number of rows that they were taken from."""

    items: list[Item] = field(default_factory=list)
    rows: int = 0
    letters: int = 0

    @property
    def is_full(self) -> bool:
        """Whether it is time to encode it."""
        return len(self.items) >= ITEMS_AT_ONCE or self.letters >= LETTERS_AT_ONCE


class Worker:
    """Does units of a job, one at a time. It can be pickled; the encoder is opened when the first unit is done."""

    def __init__(self, job: Job, device: str | None = None) -> None:
        self.job, self.device = job, device

    def __getstate__(self) -> dict[str, Any]:
        return {"job": self.job, "device": self.device}

    @cached_property
    def encoder(self) -> Any:
        """The encoder of the job, on this worker's device."""
        from bothways.encoder import Encoder

        encoder = Encoder.from_pretrained(self.job.encoder, device=self.device, **self.job.opening)
        if encoder.dtype_choice is not None:
            said = f"computed in {encoder.dtype}: {encoder.dtype_choice.why}".replace("torch.", "")
            warnings.warn(said, stacklevel=2)
        return encoder

    @cached_property
    def reader(self) -> Reader:
        """The files of the job."""
        return Reader(self.job.files, self.job.settings.max_row_bytes)

    def close(self) -> None:
        """Close the file that is open."""
        self.reader.close()

    def do(self, unit: Unit, tell: Callable[[int], None] = lambda rows: None) -> Done:
        """Write the part of a unit, and before it the list of its rows that could not be used, if there are any.

        `tell` hears how many rows more are done. Raises DataError at a bad row, unless the job skips them.
        """
        job = self.job
        rejected: list[Rejected] = []
        with whole(job.part(unit)) as partial:
            # The schema has the dimension, which the encoder knows.
            with (
                closing(PartWriter(partial, job.schema(self.dim))) as writer,
                closing(ahead(self.batches(unit, rejected))) as batches,
            ):
                for batch in batches:
                    if batch.items:
                        writer.add(*self._columns(batch))
                    tell(batch.rows)
            if rejected:
                with whole(job.rejected(unit)) as listed:
                    listed.write_text("".join(f"{json.dumps(asdict(item))}\n" for item in rejected), encoding="utf-8")
        return Done(unit.number, writer.rows, len(rejected))

    def table(self, rows: Any, rejected: list[Rejected]) -> pa.Table:
        """Rows that an engine brings, with their vectors: the columns that a part has, of the rows that can be used.

        `rows` is a table or record batch of pyarrow, or a data frame of pandas. What could not be used goes to
        `rejected`. Raises DataError at a bad row, unless the job skips them, and for a column that is not there.
        """
        job, where = self.job, "a batch of rows"
        rows = _as_table(rows, where)
        names = rows.schema.names
        check_column(where, job.settings.text_column, names, "text_column")
        check_column(where, job.settings.id_column or next((name for name in IDS if name in names), IDS[1]), names)
        for column in job.types:
            check_column(where, column.name, names, "keep")
        # Pandas has whole numbers among which one is missing as fractions.
        rows = _cast(rows, {column.name: kind for column, kind in job.types.items() if not column.said}, where)
        raws = (Raw(number, 0, row) for number, row in enumerate(rows.to_pylist(), start=1))
        schema = job.schema(self.dim)
        with closing(ahead(self._batches(raws, where, job.settings.text_column, rejected))) as batches:
            found = [batch_of(schema, *self._columns(batch)) for batch in batches if batch.items]
        return pa.Table.from_batches(found, schema)

    def _columns(self, batch: Batch) -> tuple[list[str], list[str], Any, list[tuple[Any, ...]]]:
        """Ids, texts, vectors and what is kept of some items."""
        texts = [item.text for item in batch.items]
        kept = list(zip(*(item.kept for item in batch.items), strict=True))
        return [item.id for item in batch.items], texts, self.vectors(texts), kept

    @property
    def dim(self) -> int:
        """Numbers of a vector, before several are packed into a byte."""
        return Asked(truncate_dim=self.job.settings.truncate_dim).dim_of(int(self.encoder.dim))

    def vectors(self, texts: list[str]) -> Any:
        """The vectors of some texts as they are stored, shape (texts, stored dim)."""
        settings = self.job.settings
        names = ("precision", "truncate_dim", "overflow", "tokens_per_batch")
        wanted = {name: getattr(settings, name) for name in names}
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            if settings.instruction is None:
                vectors = self.encoder.encode_document(texts, **wanted)
            else:
                vectors = self.encoder.encode(texts, instruction=settings.instruction, **wanted)
        self._say_once(said)
        return vectors

    def _say_once(self, said: list[warnings.WarningMessage]) -> None:
        """Of what is warned of batch by batch, such as texts that were cut, the first is enough."""
        heard: set[Any] = self.__dict__.setdefault("_heard", set())
        for item in said:
            place = (item.category, item.filename, item.lineno)
            if place not in heard:
                heard.add(place)
                warnings.warn(item.message, item.category, stacklevel=3)

    def batches(self, unit: Unit, rejected: list[Rejected]) -> Iterator[Batch]:
        """The items of a unit; what could not be used goes to `rejected`. No two of them have one id.

        Over the whole corpus that is not looked at: it would need all ids in memory.
        """
        file = self.job.files[unit.file]
        return self._batches(self.reader.rows(unit), file.name, file.text, rejected)

    def _batches(self, raws: Iterable[Raw], where: str, text: str, rejected: list[Rejected]) -> Iterator[Batch]:
        """Of any rows: `where` is what names them, `text` the column of the text."""
        job, settings = self.job, self.job.settings
        batch, seen = Batch(), dict[str, str]()
        for raw in raws:
            batch.rows += 1
            try:
                item = item_of(raw, where, text, settings.id_column, job.types, settings.max_row_bytes)
                if item.id in seen:
                    raise RowError(f'the id "{item.id}" is taken by {seen[item.id]}.')
            except RowError as problem:
                if settings.on_bad_row == "raise":
                    raise DataError(f"{where} {raw.place}: {problem} {WAY_OUT}") from None
                rejected.append(Rejected(where, raw.place, str(problem)))
                continue
            seen[item.id] = raw.place
            batch.items.append(item)
            batch.letters += len(item.text)
            if batch.is_full:
                yield batch
                batch = Batch()
        yield batch


def _as_table(rows: Any, where: str) -> pa.Table:
    """What an engine brings as a table; what is missing in a frame (None, NaN) is null. Raises DataError."""
    if isinstance(rows, pa.RecordBatch):
        return pa.Table.from_batches([rows])
    if isinstance(rows, pa.Table):
        return rows
    try:
        return pa.Table.from_pandas(rows, preserve_index=False)
    except pa.ArrowException as problem:
        raise DataError(f"{where}: a column is not of one type ({problem}).") from None


def _cast(rows: pa.Table, types: dict[str, pa.DataType], where: str) -> pa.Table:
    """The same with some columns as other types. Raises DataError for a value that is none of its type."""
    for name, kind in types.items():
        try:
            rows = rows.set_column(rows.schema.get_field_index(name), name, rows[name].cast(kind))
        except pa.ArrowException as problem:
            raise DataError(f'{where}: "{name}" is not of the type {kind} that the job has ({problem}).') from None
    return rows
