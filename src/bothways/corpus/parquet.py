"""Encode documents and write them as Parquet: columns `text`, `id` and `vector` (float32, fixed size)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bothways.data import Document, fingerprint
from bothways.errors import DataError
from bothways.folders import new_folder, refuse_taken

FILE = "vectors.parquet"
DOCUMENTS_AT_ONCE = 4096
"""Documents encoded and written as one row group: what stays in memory beside the model."""


@runtime_checkable
class EncodesDocuments(Protocol):
    """What is asked of an encoder here; `Encoder` has it."""

    def encode_document(self, texts: Sequence[str], /, *, tokens_per_batch: int | None, show_progress: bool) -> Any: ...


def embed(
    encoder: EncodesDocuments,
    documents: Sequence[Document | str],
    out: str | Path,
    *,
    tokens_per_batch: int | None = None,
    show_progress: bool = False,
) -> Path:
    """Write the texts, ids and vectors of `documents` to `out`/vectors.parquet, and return that path.

    A text without an id gets its place, from 0. The folder appears whole or not at all. The metadata of the file has,
    under "bothways", dim, count, versions and the documents' fingerprint.
    Raises ConfigError if `out` holds something, DataError for no documents.
    """
    out = Path(out)
    refuse_taken(out)
    if not documents:
        raise DataError(f"embed into {out}: there is no document. Give at least one.")
    named = [item if isinstance(item, Document) else Document(str(place), item) for place, item in enumerate(documents)]
    with new_folder(out) as partial:
        _write(encoder, named, partial / FILE, tokens_per_batch, show_progress)
    return out / FILE


def _write(
    encoder: EncodesDocuments, documents: list[Document], path: Path, tokens_per_batch: int | None, show_progress: bool
) -> None:
    writer: pq.ParquetWriter | None = None
    try:
        for start in range(0, len(documents), DOCUMENTS_AT_ONCE):
            chunk = documents[start : start + DOCUMENTS_AT_ONCE]
            texts = [document.text for document in chunk]
            vectors = np.asarray(
                encoder.encode_document(texts, tokens_per_batch=tokens_per_batch, show_progress=show_progress),
                dtype=np.float32,
            )
            if writer is None:
                writer = pq.ParquetWriter(path, _schema(documents, vectors.shape[1]))
            column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
            names = pa.array([document.id for document in chunk], pa.string())
            writer.write_batch(pa.record_batch([pa.array(texts, pa.string()), names, column], schema=writer.schema))
    finally:
        if writer is not None:
            writer.close()


def _schema(documents: list[Document], dim: int) -> pa.Schema:
    facts = {
        "dim": dim,
        "count": len(documents),
        "fingerprint": fingerprint(documents),
        "versions": {name: version(name) for name in ("torch", "transformers", "pyarrow")},
    }
    fields = [("text", pa.string()), ("id", pa.string()), ("vector", pa.list_(pa.float32(), dim))]
    return pa.schema(fields, metadata={"bothways": json.dumps(facts)})
