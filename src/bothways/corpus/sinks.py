"""The finished parts -> other formats beside them, a part at a time in memory."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Literal

import numpy as np

from bothways.corpus.layout import ID, VECTOR, read_manifest, tables, vectors_of
from bothways.corpus.parquet import whole
from bothways.errors import ConfigError

Format = Literal["parquet", "npy", "lance"]
VECTORS, IDS = "vectors.npy", "ids.jsonl"
LANCE, TABLE = "lance", "corpus"


def write_as(kind: Format, folder: Path) -> Path:
    """Write a finished folder of vectors in another format into itself; returns what was written.

    npy: `vectors.npy`, shape (rows, stored dim), and `ids.jsonl`, one id a line in the same order. lance: the table
    "corpus" of a LanceDB database in `lance/`, with all columns. Raises ConfigError if lancedb is not installed.
    """
    if kind == "npy":
        return _npy(folder)
    return _lance(folder) if kind == "lance" else folder


def check_format(kind: Format) -> None:
    """Raises ConfigError if a package is missing, before the work rather than after it."""
    if kind == "lance":
        try:
            import lancedb  # noqa: F401
        except ImportError:
            raise ConfigError("--format lance needs lancedb: pip install 'bothways[corpus]'.") from None


def _npy(folder: Path) -> Path:
    manifest = read_manifest(folder)
    kind = manifest.schema().field(VECTOR).type.value_type.to_pandas_dtype()
    with whole(folder / IDS) as ids, whole(folder / VECTORS) as vectors:
        shape = (manifest.rows, manifest.stored_dim)
        array = np.lib.format.open_memmap(vectors, mode="w+", dtype=np.dtype(kind), shape=shape)
        with ids.open("w", encoding="utf-8") as lines:
            row = 0
            for table in tables(folder, manifest, [ID, VECTOR]):
                array[row : row + table.num_rows] = vectors_of(table[VECTOR])
                row += table.num_rows
                lines.writelines(f"{json.dumps(name)}\n" for name in table[ID].to_pylist())
        array.flush()
        del array
    return folder / VECTORS


def _lance(folder: Path) -> Path:
    import lancedb

    manifest = read_manifest(folder)
    target, partial = folder / LANCE, folder / f".{LANCE}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    database = lancedb.connect(partial)
    table = None
    for rows in tables(folder, manifest):
        if table is None:
            table = database.create_table(TABLE, rows)
        else:
            table.add(rows)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)
    return target
