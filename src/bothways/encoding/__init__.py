"""Many texts -> vectors, as fast as one machine can: what `Encoder.encode` does with the model's forward pass."""

from bothways.encoding.asked import Ask, Asked, Output, Overflow
from bothways.encoding.flow import Computes, TokenVectors, encode
from bothways.precision import PRECISIONS, Precision, quantise, stored_dim

__all__ = [
    "PRECISIONS",
    "Ask",
    "Asked",
    "Computes",
    "Output",
    "Overflow",
    "Precision",
    "TokenVectors",
    "encode",
    "quantise",
    "stored_dim",
]
