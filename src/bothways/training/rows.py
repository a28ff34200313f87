"""Texts -> token ids for a stage, which may read more or less of a text than the encoder does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from bothways.data import Example, fingerprint
from bothways.encoder import Encoder
from bothways.errors import DataError
from bothways.text import TextIds
from bothways.training.batches import split_held_out
from bothways.training.settings import Training

Item = TypeVar("Item", str, Example)


def tokenise(
    encoder: Encoder, texts: Sequence[str], instructions: Sequence[str | None] | None = None, *, max_length: int | None
) -> list[TextIds]:
    """What `encoder.tokenise` gives, but cut at `max_length` tokens; None: as the encoder does."""
    own = encoder.settings
    if max_length is not None:
        encoder.settings = replace(own, max_length=max_length)
    try:
        return encoder.tokenise(texts, instructions)
    finally:
        encoder.settings = own


def hold_out(
    items: Sequence[Item], held_out: Sequence[Item] | None, settings: Training
) -> tuple[list[Item], list[Item]]:
    """What to train on and what to measure on: the given `held_out`, or `settings.held_out_items` kept back."""
    if held_out is not None:
        return list(items), list(held_out)
    training, kept_back = split_held_out(items, settings.held_out_items, settings.seed)
    return [items[i] for i in training], [items[i] for i in kept_back]


def data_facts(call: str, train: Sequence[str | Example], held_out: Sequence[str | Example]) -> dict[str, str | int]:
    """What the record says of the data. Raises DataError if there is nothing to train on."""
    if not train:
        raise DataError(f"{call}: no item to train on. Give at least one.")
    return {
        "items": len(train),
        "fingerprint": fingerprint(train),
        "held_out_items": len(held_out),
        "held_out_fingerprint": fingerprint(held_out),
    }
