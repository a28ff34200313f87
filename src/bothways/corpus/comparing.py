"""How vectors compare at each precision: as what LanceDB holds them, how a query is made alike, and the score."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Shaped
from numpy.typing import NDArray

from bothways.precision import Precision, quantise

Vectors = Shaped[np.ndarray[Any, Any], "queries held"]
"""As LanceDB holds them: bytes of eight bits each for the binary precisions, numbers for the others."""


def is_binary(precision: Precision) -> bool:
    """Whether vectors are bits."""
    return precision in ("binary", "ubinary")


def metric(precision: Precision) -> str:
    """LanceDB's name of the distance."""
    return "hamming" if is_binary(precision) else "cosine"


def held_type(precision: Precision) -> pa.DataType:
    """The numbers in LanceDB, which has no cosine of whole numbers; float16 holds those from -128 to 127 exactly."""
    if is_binary(precision):
        return pa.uint8()
    return pa.float32() if precision == "float32" else pa.float16()


def as_held(stored: Shaped[np.ndarray[Any, Any], "rows stored"], precision: Precision) -> Vectors:
    """Vectors of the corpus as LanceDB holds them: offsets of "uint8" and "binary" taken off."""
    if precision == "uint8":
        stored = stored.astype(np.int16) - 128
    if precision == "binary":
        stored = stored.astype(np.int16) + 128
    return stored.astype(held_type(precision).to_pandas_dtype())


def query_as_held(vectors: Float32[np.ndarray[Any, Any], "queries dim"], precision: Precision) -> Vectors:
    """Vectors of queries, rounded as those of the corpus are."""
    return as_held(quantise(vectors, precision), precision)


def scores(
    queries: Vectors, rows: Shaped[np.ndarray[Any, Any], "rows held"], precision: Precision, dim: int
) -> Float32[np.ndarray[Any, Any], "queries rows"]:
    """Every query with every row: the cosine, or for the binary precisions the share of equal bits, 0 to 1."""
    first, second = _unit(queries, precision, dim), _unit(rows, precision, dim)
    products: NDArray[np.float32] = first @ second.T
    return (1 + products) / 2 if is_binary(precision) else products


def _unit(held: Vectors, precision: Precision, dim: int) -> NDArray[np.float32]:
    """In float32, of unit length; bits as -1 and 1, so that products count those that are equal."""
    if is_binary(precision):
        signs = np.unpackbits(held, axis=1, count=dim).astype(np.float32) * 2 - 1
        return np.divide(signs, np.sqrt(dim), dtype=np.float32)
    wide = held.astype(np.float32)
    unit: NDArray[np.float32] = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), np.float32(1e-12))
    return unit
