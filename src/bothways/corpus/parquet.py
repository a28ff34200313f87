"""Writing parts: rows of ids, texts, kept columns and vectors, as a Parquet file that appears whole or not at all."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bothways.corpus.fingerprint import encoder_fingerprint
from bothways.corpus.layout import ID, TEXT, VECTOR, Manifest, Part, column_of
from bothways.data import Document
from bothways.errors import DataError
from bothways.folders import new_folder, refuse_taken

FILE = "part-00000.parquet"
DOCUMENTS_AT_ONCE = 4096
"""Documents encoded and written as one row group: what stays in memory beside the model."""
PARTIAL = ".partial"


@runtime_checkable
class EncodesDocuments(Protocol):
    """What is asked of an encoder here; `Encoder` has it."""

    def encode_document(self, texts: Sequence[str], /) -> Any: ...


class PartWriter:
    """Writes one part, a row group at a time."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.schema = schema
        # No two vectors have numbers in common that a dictionary could save.
        plain = [name for name in schema.names if name not in (ID, TEXT, VECTOR)]
        self._writer = pq.ParquetWriter(path, schema, use_dictionary=plain)
        self.rows = 0

    def add(self, ids: Sequence[str], texts: Sequence[str], vectors: Any, kept: Sequence[Sequence[Any]] = ()) -> None:
        """One row group of these rows; see `batch_of`."""
        self._writer.write_batch(batch_of(self.schema, ids, texts, vectors, kept))
        self.rows += len(ids)

    def close(self) -> None:
        """Write the end of the file."""
        self._writer.close()


def batch_of(
    schema: pa.Schema, ids: Sequence[str], texts: Sequence[str], vectors: Any, kept: Sequence[Sequence[Any]] = ()
) -> pa.RecordBatch:
    """Rows as the schema wants them. `vectors` has shape (rows, stored dim); `kept` has the values of each column."""
    named = {ID: pa.array(ids, pa.string()), VECTOR: column_of(np.asarray(vectors), schema)}
    if TEXT in schema.names:
        named[TEXT] = pa.array(texts, pa.string())
    others = [field for field in schema if field.name not in (ID, TEXT, VECTOR)]
    for field, values in zip(others, kept, strict=True):
        named[field.name] = pa.array(values, field.type)
    return pa.record_batch([named[name] for name in schema.names], schema=schema)


def partial_of(path: Path) -> Path:
    """Where this process writes what is to become `path`."""
    return path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}{PARTIAL}")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, which takes its name when the block ends without an error.

    It is on the disk by then, so that a file of that name is whole also after the machine stops. Its name is of this
    process alone: where a unit is by chance done twice, neither writes into the other's.
    """
    partial = partial_of(path)
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def embed(
    encoder: EncodesDocuments, documents: Sequence[Document | str], out: str | Path, *, saved: str | Path | None = None
) -> Path:
    """Write the texts, ids and vectors (float32) of `documents` as a folder of vectors, and return it.

    A text without an id gets its place, from 0. The folder appears whole or not at all. `saved` is the encoder's
    folder, which the manifest names, so that queries find it. For more texts than fit into memory there is `encode`.
    Raises ConfigError if `out` holds something, DataError for no documents.
    """
    out = Path(out)
    refuse_taken(out)
    if not documents:
        raise DataError(f"embed into {out}: there is no document. Give at least one.")
    named = [item if isinstance(item, Document) else Document(str(place), item) for place, item in enumerate(documents)]
    fingerprint = "" if saved is None else encoder_fingerprint(saved)
    manifest = Manifest(encoder="" if saved is None else str(saved), fingerprint=fingerprint, dim=0)
    with new_folder(out) as partial:
        dim = _write(encoder, named, partial / FILE, manifest)
        replace(manifest, dim=dim, parts=(Part(FILE, len(named)),), complete=True).write(partial)
    return out


def _write(encoder: EncodesDocuments, documents: list[Document], path: Path, manifest: Manifest) -> int:
    """Write them all; returns the dimension."""
    writer: PartWriter | None = None
    dim = 0
    try:
        for start in range(0, len(documents), DOCUMENTS_AT_ONCE):
            chunk = documents[start : start + DOCUMENTS_AT_ONCE]
            texts = [document.text for document in chunk]
            vectors = np.asarray(encoder.encode_document(texts), dtype=np.float32)
            dim = vectors.shape[1]
            writer = writer or PartWriter(path, replace(manifest, dim=dim).schema())
            writer.add([document.id for document in chunk], texts, vectors)
    finally:
        if writer is not None:
            writer.close()
    return dim
