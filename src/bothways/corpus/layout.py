"""What a folder of vectors looks like: Parquet files, and `corpus.json`, which says what they hold."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bothways.errors import DataError
from bothways.precision import PRECISIONS, Precision, stored_dim

MANIFEST = "corpus.json"
VERSION = 1
ID, TEXT, VECTOR = "id", "text", "vector"
ROWS_AT_ONCE = 2048
"""Rows of a part that are in memory at a time, where they are streamed."""


@dataclass(frozen=True)
class Part:
    """One file of the folder."""

    file: str
    rows: int


@dataclass(frozen=True)
class Manifest:
    """What a folder of vectors holds."""

    encoder: str
    """Name or folder of the encoder, as it was given: where queries are encoded unless another place is named."""
    fingerprint: str
    """SHA-256 of the encoder's weights and settings: vectors of others do not compare."""
    dim: int
    """Numbers of a vector, before several of them are packed into one byte."""
    precision: Precision = "float32"
    texts: bool = True
    """Whether the texts are kept beside the vectors."""
    columns: tuple[str, ...] = ()
    """Other columns of the input that are kept."""
    parts: tuple[Part, ...] = ()
    """The files, in the order of their rows."""
    complete: bool = False
    """Whether all rows of the input are there."""
    version: int = VERSION

    @property
    def rows(self) -> int:
        """Vectors in all parts."""
        return sum(part.rows for part in self.parts)

    @property
    def stored_dim(self) -> int:
        """Numbers of a stored vector."""
        return stored_dim(self.dim, self.precision)

    def schema(self, columns: dict[str, pa.DataType] | None = None) -> pa.Schema:
        """Of every part: id, text where it is kept, `columns` of the given types, vector of fixed size.

        The metadata names, under "bothways", the encoder's fingerprint, dim and precision, so that a part that is
        taken out of its folder still says what it is.
        """
        names = [(ID, pa.string()), *([(TEXT, pa.string())] if self.texts else []), *(columns or {}).items()]
        vector = pa.list_(pa.from_numpy_dtype(PRECISIONS[self.precision]), self.stored_dim)
        facts = {"fingerprint": self.fingerprint, "dim": self.dim, "precision": self.precision}
        return pa.schema([*names, (VECTOR, vector)], metadata={"bothways": json.dumps(facts)})

    def write(self, folder: Path) -> None:
        """Write it into the folder, in place of the one before."""
        partial = folder / f".{MANIFEST}.{os.getpid()}"
        partial.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        os.replace(partial, folder / MANIFEST)


def read_manifest(folder: str | Path, *, complete: bool = True) -> Manifest:
    """What is in a folder of vectors. Raises DataError if it is none, a newer one, or (`complete`) not finished."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise DataError(
            f"{folder}: {MANIFEST} is missing, so this is no folder of vectors. `bothways encode` makes one."
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["version"] > VERSION:
            raise DataError(f"{path}: of a newer bothways (version {found['version']}, known is {VERSION}). Update it.")
        known = {field.name for field in fields(Manifest)}
        values = {name: value for name, value in found.items() if name in known}
        parts = tuple(Part(**part) for part in values.pop("parts"))
        manifest = Manifest(**values | {"columns": tuple(values["columns"]), "parts": parts})
    except (json.JSONDecodeError, KeyError, TypeError) as problem:
        raise DataError(f"{path}: not a manifest of this package ({problem!r}). Encode the corpus again.") from None
    if complete and not manifest.complete:
        raise DataError(
            f"{folder}: not finished, {manifest.rows:,} vectors so far. Run the same `bothways encode` again."
        )
    return manifest


def column_of(vectors: NDArray[Any], schema: pa.Schema) -> pa.Array:
    """Vectors, shape (rows, stored dim), as the column that the schema wants."""
    kind = schema.field(VECTOR).type
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1), kind.value_type)
    return pa.FixedSizeListArray.from_arrays(flat, kind.list_size)


def vectors_of(column: pa.ChunkedArray | pa.Array) -> NDArray[Any]:
    """The vectors of a column as stored, shape (rows, stored dim)."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    flat = array.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat).reshape(len(array), array.type.list_size)


def tables(folder: str | Path, manifest: Manifest, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The parts of a folder one by one, some `columns` of them or all. Raises DataError for one that is missing."""
    for part in manifest.parts:
        # Read as one file, so that a parent folder named key=value does not become a column.
        yield pq.ParquetFile(path_of(folder, part)).read(columns)


def batches(
    folder: str | Path, manifest: Manifest, columns: list[str] | None = None, rows: int = ROWS_AT_ONCE
) -> Iterator[pa.RecordBatch]:
    """The same a few `rows` at a time, for what must not hold a whole part in memory."""
    for part in manifest.parts:
        # Closed behind each part: a corpus may have more of them than a process may have open files.
        with pq.ParquetFile(path_of(folder, part)) as file:
            yield from file.iter_batches(rows, columns=columns)


def path_of(folder: str | Path, part: Part) -> Path:
    """Where a part is. Raises DataError if it is missing."""
    path = Path(folder) / part.file
    if not path.is_file():
        raise DataError(f"{folder}: {part.file} is missing, which {MANIFEST} lists. Encode the corpus again.")
    return path
