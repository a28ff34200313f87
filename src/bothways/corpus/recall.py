"""The recall of an ANN index: rows of the corpus are its queries, exact search over the parts is the truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int64, Shaped

from bothways.corpus.comparing import as_held, scores
from bothways.corpus.layout import VECTOR, Manifest, batches, vectors_of
from bothways.corpus.table import ROW, SCORE, Probing, nearest

NEIGHBOURS = 10
"""k of the recall that is measured."""
SAME = 1e-6
"""Scores that differ by less are equal: either row may be the one that is found."""
REFINE = (1, 4, 16)
"""Values of refine_factor that are tried."""


@dataclass(frozen=True)
class Sample:
    """Rows of the corpus that are asked for their neighbours, themselves left out."""

    manifest: Manifest
    rows: Int64[np.ndarray[Any, Any], " queries"]
    """Their numbers in the corpus."""
    vectors: Shaped[np.ndarray[Any, Any], "queries held"]
    lowest: Float32[np.ndarray[Any, Any], " queries"]
    """The score of the last of the true neighbours."""

    @classmethod
    def two(cls, folder: Path, manifest: Manifest, size: int, seed: int) -> tuple[Sample, Sample]:
        """Two samples of `size` rows each, or of half the corpus, that share none."""
        size = min(size, manifest.rows // 2)
        rows = np.random.default_rng(seed).choice(manifest.rows, 2 * size, replace=False)
        vectors = _picked(folder, manifest, rows)
        lowest = _lowest(folder, manifest, rows, vectors)
        first, second = (
            cls(manifest, rows[part], vectors[part], lowest[part]) for part in (slice(size), slice(size, None))
        )
        return first, second

    def recalls(self, table: Any, probing: Probing) -> Float[np.ndarray[Any, Any], " queries"]:
        """The share of each row's true neighbours that are found; of rows with equal scores any will do."""
        wanted = min(NEIGHBOURS, self.manifest.rows - 1)
        found = []
        for row, vector, lowest in zip(self.rows, self.vectors, self.lowest, strict=True):
            near = nearest(table, self.manifest, vector, wanted + 1, probing=probing)
            others = near[SCORE].to_numpy()[near[ROW].to_numpy() != row][:wanted]
            found.append((others >= lowest - SAME).sum() / wanted)
        return np.array(found)

    def recall(self, table: Any, probing: Probing) -> float:
        """The mean of `recalls`."""
        return float(self.recalls(table, probing).mean())

    def surely(self, table: Any, probing: Probing) -> float:
        """The mean less its standard error: what other rows are likely to reach as well."""
        found = self.recalls(table, probing)
        return float(found.mean() - found.std() / np.sqrt(len(found)))


def tuned(recall: Callable[[Probing], float], partitions: int, wanted: float, *, refine: bool) -> Probing:
    """The fewest partitions, in powers of two, and then the least refinement with which `recall` is what is `wanted`.

    Where none is, all partitions and the most refinement. Without `refine` vectors are not rounded, so there is none.
    """
    factors = REFINE if refine else REFINE[:1]
    nprobes = 1
    while nprobes < partitions and recall(Probing(nprobes, factors[-1])) < wanted:
        nprobes = min(2 * nprobes, partitions)
    tried = (Probing(nprobes, factor) for factor in factors[:-1])
    return next((probing for probing in tried if recall(probing) >= wanted), Probing(nprobes, factors[-1]))


def _picked(
    folder: Path, manifest: Manifest, rows: Int64[np.ndarray[Any, Any], " queries"]
) -> Shaped[np.ndarray[Any, Any], "queries held"]:
    """The vectors of some rows."""
    order, found, start = np.argsort(rows), [], 0
    for batch in batches(folder, manifest, [VECTOR]):
        here = rows[
            order[np.searchsorted(rows, start, sorter=order) : np.searchsorted(rows, start + len(batch), sorter=order)]
        ]
        found.append(as_held(vectors_of(batch[VECTOR])[here - start], manifest.precision))
        start += len(batch)
    vectors = np.concatenate(found)
    return vectors[np.argsort(order)]


def _lowest(
    folder: Path,
    manifest: Manifest,
    rows: Int64[np.ndarray[Any, Any], " queries"],
    vectors: Shaped[np.ndarray[Any, Any], "queries held"],
) -> Float32[np.ndarray[Any, Any], " queries"]:
    """The score of each query's last true neighbour; every vector of the corpus is compared."""
    best = np.full((len(rows), NEIGHBOURS), -np.inf, dtype=np.float32)
    start = 0
    for batch in batches(folder, manifest, [VECTOR]):
        held = as_held(vectors_of(batch[VECTOR]), manifest.precision)
        given = scores(vectors, held, manifest.precision, manifest.dim)
        itself = np.flatnonzero((rows >= start) & (rows < start + len(batch)))
        given[itself, rows[itself] - start] = -np.inf
        best = np.partition(np.concatenate([best, given], axis=1), -NEIGHBOURS, axis=1)[:, -NEIGHBOURS:]
        start += len(batch)
    return np.sort(best, axis=1)[:, -min(NEIGHBOURS, manifest.rows - 1)]
