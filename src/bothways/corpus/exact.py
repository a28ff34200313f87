"""Exact search in an encoded corpus: every vector is compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from bothways.corpus.layout import ID, TEXT, VECTOR, read_manifest, tables, vectors_of
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
        """A folder of vectors that `encode` or `embed` wrote.

        Raises DataError if it is none, or its vectors are of whole numbers, which have no cosine as they are.
        """
        manifest = read_manifest(folder)
        if manifest.precision not in ("float32", "float16"):
            raise DataError(f"search in {folder}: its vectors are {manifest.precision}. Use `bothways search`.")
        vectors = np.empty((manifest.rows, manifest.dim), dtype=np.float32)
        ids: list[str] = []
        texts: list[str] = []
        for table in tables(folder, manifest, [ID, *([TEXT] if manifest.texts else []), VECTOR]):
            vectors[len(ids) : len(ids) + table.num_rows] = vectors_of(table[VECTOR])
            ids += table[ID].to_pylist()
            texts += table[TEXT].to_pylist() if manifest.texts else [""] * table.num_rows
        return cls(ids, texts, vectors)

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
