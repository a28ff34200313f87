"""What computes a file: batches of ids in, vectors and states of tokens out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from bothways.text import Features

VECTORS, STATES = "sentence_embedding", "token_embeddings"
"""The outputs of a file, by the names that other tools look for."""
INPUTS = ("input_ids", "attention_mask", "pool_mask")
"""Its inputs; the last one only where not every token is pooled."""


@dataclass(frozen=True)
class Output:
    """What a file computes of one batch."""

    vectors: Float[np.ndarray, "batch dim"]
    """Pooled, and of unit length if the encoder's settings say so."""
    states: Float[np.ndarray, "batch tokens dim"]
    """The last hidden state of every token, of padding too."""


@runtime_checkable
class Runner(Protocol):
    """One opened file."""

    name: str
    number_format: str
    """In which number format it computes: float32, bfloat16 or int8."""
    why: str
    """Why in that one; "" for the file's own."""

    def run(
        self,
        input_ids: Int[np.ndarray, "batch tokens"],
        attention_mask: Int[np.ndarray, "batch tokens"],
        pool_mask: Int[np.ndarray, "batch tokens"],
    ) -> Output:
        """All of one right-padded batch."""


def computed(runner: Runner, features: Features) -> Output:
    """What a file makes of a batch, by its own pooling."""
    masks = (features.attention_mask, features.pool_mask)
    return runner.run(features.input_ids.numpy(), *(mask.numpy().astype(np.int64) for mask in masks))
