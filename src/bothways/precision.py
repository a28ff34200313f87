"""Number formats of finished vectors. None needs a calibration set: a query alone is quantised as a corpus is."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from bothways.errors import ConfigError, did_you_mean

Precision = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]
PRECISIONS: dict[str, type[np.generic]] = {
    "float32": np.float32,
    "float16": np.float16,
    "int8": np.int8,
    "uint8": np.uint8,
    "binary": np.int8,
    "ubinary": np.uint8,
}
"""Precision of a vector -> the type of its numbers. Of "binary" and "ubinary" each number holds eight."""
LARGEST = 127
"""What the largest number of a vector becomes in int8."""
ZERO = 128
"""What 0 is in uint8; also what "binary" is below "ubinary"."""


def check_precision(precision: str) -> None:
    """Raises ConfigError that names the nearest for an unknown one."""
    if precision not in PRECISIONS:
        raise ConfigError(f'precision="{precision}" is not known. {did_you_mean(precision, PRECISIONS)}')


def stored_dim(dim: int, precision: Precision) -> int:
    """Numbers of a vector of `dim` dimensions once it is stored."""
    return -(-dim // 8) if precision in ("binary", "ubinary") else dim


def quantise(vectors: Float[NDArray[np.float32], "texts dim"], precision: Precision) -> NDArray[Any]:
    """Vectors in another number format, shape (texts, `stored_dim`).

    int8: every vector is scaled by a number of its own, so that its largest becomes 127: compare by cosine, which that
    does not change. uint8: the same plus 128. ubinary: one bit a dimension, 1 above zero, eight in a byte, the first
    in the highest bit; compare by Hamming distance. binary: the same minus 128, as int8, as sentence-transformers has
    it.
    """
    if precision in ("float32", "float16"):
        return vectors.astype(PRECISIONS[precision], copy=False)
    if precision in ("int8", "uint8"):
        largest = np.abs(vectors).max(axis=1, keepdims=True, initial=0)
        whole = np.rint(vectors * (LARGEST / np.where(largest > 0, largest, 1))).astype(np.int16)
        return whole.astype(np.int8) if precision == "int8" else (whole + ZERO).astype(np.uint8)
    bits = np.packbits(vectors > 0, axis=1)
    return bits if precision == "ubinary" else (bits.astype(np.int16) - ZERO).astype(np.int8)
