"""Exact search in an encoded corpus: every vector is compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float32

from bothways.corpus.parquet import FILE
from bothways.errors import DataError


@dataclass(frozen=True)
class Hit:
    """A document that was found. `score` is the product of the vectors: the cosine, where both have unit length."""

    id: str
    text: str
    score: float


@dataclass(frozen=True)
class Corpus:
    """Documents and their vectors, in memory."""

    ids: list[str]
    texts: list[str]
    vectors: Float32[np.ndarray[Any, Any], "documents dim"]

    @classmethod
    def open(cls, folder: str | Path) -> Corpus:
        """What `embed` wrote. Raises DataError if it is not there."""
        path = Path(folder) / FILE
        if not path.is_file():
            raise DataError(f"search in {folder}: {FILE} is missing. Write it with `bothways encode`.")
        # Read as one file, so that a parent folder named key=value does not become a column.
        columns = pq.ParquetFile(path).read()
        vectors = columns["vector"].combine_chunks()
        dim = vectors.type.list_size
        flat = vectors.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
        return cls(columns["id"].to_pylist(), columns["text"].to_pylist(), flat)

    def search(self, vector: Float32[np.ndarray[Any, Any], " dim"], k: int = 10) -> list[Hit]:
        """The `k` documents of largest product with `vector`, best first; of equal ones the earlier first.

        Raises DataError if `vector` is not one vector of the corpus's dimension.
        """
        if vector.shape != self.vectors.shape[1:]:
            wanted = self.vectors.shape[1]
            raise DataError(
                f"search: the vector has shape {vector.shape}, but the corpus has ({wanted},). Use its encoder."
            )
        scores = self.vectors @ vector
        best = np.argsort(-scores, kind="stable")[:k]
        return [Hit(self.ids[place], self.texts[place], float(scores[place])) for place in best]


def search(folder: str | Path, vector: Float32[np.ndarray[Any, Any], " dim"], k: int = 10) -> list[Hit]:
    """Open the corpus in `folder` and search it once; for many questions keep a `Corpus`."""
    return Corpus.open(folder).search(vector, k)
