"""Folders of vectors as `bothways encode` writes them, made of vectors that a test brings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bothways.corpus.layout import Manifest, Part
from bothways.precision import PRECISIONS, Precision


def rounded(vectors: np.ndarray, precision: Precision) -> np.ndarray:
    """Vectors as they are stored: what the format says, in the plainest words."""
    if precision in ("float32", "float16"):
        return vectors.astype(precision)
    if precision in ("int8", "uint8"):
        whole = np.round(vectors / np.abs(vectors).max(axis=1, keepdims=True) * 127).astype(int)
        return whole.astype(np.int8) if precision == "int8" else (whole + 128).astype(np.uint8)
    packed = np.packbits(vectors > 0, axis=1).astype(int)
    return packed.astype(np.uint8) if precision == "ubinary" else (packed - 128).astype(np.int8)


def corpus(
    folder: Path,
    vectors: np.ndarray,
    precision: Precision = "float32",
    *,
    columns: Mapping[str, Sequence[Any]] | None = None,
    texts: Sequence[str] | None = None,
    rows_of_part: int = 1000,
    encoder: str = "nowhere",
    fingerprint: str = "0" * 64,
) -> Manifest:
    """Write a complete folder; ids are "d0", "d1" and so on, texts "text 0" unless given."""
    columns = {name: pa.array(values) for name, values in (columns or {}).items()}
    texts = [f"text {row}" for row in range(len(vectors))] if texts is None else texts
    manifest = Manifest(encoder, fingerprint, vectors.shape[1], precision, columns=tuple(columns), complete=True)
    schema = manifest.schema({name: values.type for name, values in columns.items()})
    folder.mkdir(parents=True)
    stored, parts = rounded(vectors, precision), []
    for number, start in enumerate(range(0, len(vectors), rows_of_part)):
        span = slice(start, start + rows_of_part)
        flat = pa.array(stored[span].ravel(), pa.from_numpy_dtype(PRECISIONS[precision]))
        column = pa.FixedSizeListArray.from_arrays(flat, manifest.stored_dim)
        ids = [f"d{row}" for row in range(start, start + len(column))]
        table = pa.table([ids, texts[span], *(values[span] for values in columns.values()), column], schema=schema)
        parts.append(Part(f"part-{number}.parquet", len(column)))
        pq.write_table(table, folder / parts[-1].file)
    manifest = replace(manifest, parts=tuple(parts))
    manifest.write(folder)
    return manifest
