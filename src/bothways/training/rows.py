"""Texts -> token ids for a stage, which may read more or less of a text than the encoder does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from bothways.data import Example, Rows, Texts, fingerprint, origins_of
from bothways.encoder import Encoder
from bothways.errors import DataError
from bothways.text import TextIds, check_texts
from bothways.training import token_cache
from bothways.training.batches import Share, balanced, split_held_out
from bothways.training.settings import Training
from bothways.training.tokens import Blocks, Tokens

Item = TypeVar("Item", str, Example, str | Example)


def tokenise(
    encoder: Encoder,
    texts: Sequence[str],
    instructions: Sequence[str | None] | None = None,
    *,
    max_length: int | None,
    bare: bool = False,
) -> list[TextIds]:
    """What `encoder.tokenise` gives, but cut at `max_length` tokens (None: as the encoder does).

    `bare` leaves out what the encoder puts around every text.
    """
    own = encoder.settings
    template = "{text}" if bare else own.text_template
    encoder.settings = replace(own, max_length=max_length or own.max_length, text_template=template)
    try:
        return encoder.tokenise(texts, instructions)
    finally:
        encoder.settings = own


def read_tokens(call: str, encoder: Encoder, texts: Sequence[str] | Texts, *, max_length: int | None) -> Tokens:
    """The ids that `tokenise` gives of bare texts: of files on disk, tokenised once for all runs; of a list in memory.

    Raises DataError for a bad row, or something in the list that is no text.
    """

    def encode(batch: list[str]) -> list[list[int]]:
        return [row.ids for row in tokenise(encoder, batch, max_length=max_length, bare=True)]

    if isinstance(texts, Texts):
        how = token_cache.identity(encoder.tokenizer, max_length or encoder.settings.max_length)
        return Tokens(token_cache.stored(texts, encode, how))
    check_texts(texts, call)
    return Tokens(token_cache.in_memory(texts, encode))


def hold_out_tokens(tokens: Tokens, held_out: Tokens | None, settings: Training) -> tuple[Tokens, Tokens]:
    """`hold_out` for texts that are tokens already: no text on both sides, where equal ids are the same text."""
    if held_out is not None:
        return tokens, held_out
    kept_back, left_out = split_held_out(tokens.hashes, settings.held_out_items, settings.seed)
    return tokens.without(left_out), tokens.only(kept_back)


def hold_out(
    items: Sequence[Item], held_out: Sequence[Item] | None, settings: Training
) -> tuple[Rows[Item], Rows[Item]]:
    """What to train on and what to measure on: the given `held_out`, or `settings.held_out_items` kept back."""
    if held_out is not None:
        return _kept(items, set()), _kept(held_out, set())
    kept_back, left_out = split_held_out(items, settings.held_out_items, settings.seed)
    return _kept(items, set(left_out.tolist())), Rows([items[i] for i in kept_back.tolist()])


def _kept(items: Sequence[Item], left_out: set[int]) -> Rows[Item]:
    """All but some, with what came from where."""
    rows: Rows[Item] = Rows(item for place, item in enumerate(items) if place not in left_out)
    start = 0
    for origin in origins_of(items):
        places = range(start, start + origin.rows)
        rows.origins.append(replace(origin, rows=len(places) - sum(place in places for place in left_out)))
        start += origin.rows
    return rows


def shares_of(
    rows: Sequence[Any] | Tokens | Blocks, *, size_exponent: float = 1.0, apart: bool = False
) -> tuple[Share, ...]:
    """How many rows each source has, and how often each row is to be seen (see `batches.balanced`).

    All are one share where no source is known, or, unless the sources are to stay `apart`, where all are seen alike.
    """
    if isinstance(rows, Tokens | Blocks):
        shares = [Share(count, weight) for weight, count in rows.weights]
    else:
        shares = [Share(origin.rows, origin.weight) for origin in origins_of(rows)]
    shares = list(balanced(shares, size_exponent))
    alike = not apart and all(share.weight == 1 for share in shares)
    return (Share(len(rows)),) if alike or not shares else tuple(shares)


def data_facts(call: str, train: Sequence[Any] | Tokens, held_out: Sequence[Any] | Tokens) -> dict[str, Any]:
    """What the record says of the data. Raises DataError if there is nothing to train on."""
    if not len(train):
        if len(held_out):
            raise DataError(
                f"{call}: no item to train on: each is held out, or is the same text as one of the {len(held_out):,} "
                "that are. Give more texts that differ, or held_out_items=0."
            )
        raise DataError(f"{call}: no item to train on. Give at least one.")
    origins = train.origins if isinstance(train, Tokens) else origins_of(train)
    return {
        "items": len(train),
        "fingerprint": _fingerprint(train),
        "held_out_items": len(held_out),
        "held_out_fingerprint": _fingerprint(held_out),
        **({"sources": [origin.facts for origin in origins]} if origins else {}),
    }


def _fingerprint(items: Sequence[Any] | Tokens) -> str:
    return items.fingerprint() if isinstance(items, Tokens) else fingerprint(items)
