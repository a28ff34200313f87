"""What the measures ask of an encoder: texts in, one row a text out, dense or (as those of tf-idf) sparse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from bothways.errors import DataError

Floats = NDArray[np.floating[Any]]


@runtime_checkable
class Embeds(Protocol):
    """Anything with these two methods can be measured; `Encoder` has them, and so has `SentenceTransformer`."""

    def encode_query(self, texts: Sequence[str], /) -> Any: ...

    def encode_document(self, texts: Sequence[str], /) -> Any: ...


def finite_rows(vectors: Any) -> Any:
    """Dense rows as float32, sparse ones as they are. Raises DataError for vectors that are not finite."""
    if hasattr(vectors, "toarray"):
        return vectors
    vectors = np.asarray(vectors, dtype=np.float32)
    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise DataError(f"evaluate: the vector of text {row} is not finite. Encode in float32, or train it again.")
    return vectors


def unit_rows(vectors: Any) -> Any:
    """Rows divided by their lengths; a row of zeros stays one. Raises DataError for vectors that are not finite."""
    vectors = finite_rows(vectors)
    if hasattr(vectors, "toarray"):
        return vectors
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def products(rows: Any, columns: Any) -> Floats:
    """Every row times every column, dense, shape (rows, columns)."""
    found = rows @ columns.T
    dense: Floats = found.toarray() if hasattr(found, "toarray") else found
    return dense
