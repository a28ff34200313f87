"""Which tokens MNTP hides, and behind what: drawn from (seed, epoch, row), so that no resume changes it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from bothways.errors import ConfigError
from bothways.training.settings import MaskScheme

NOT_PREDICTED = -100
"""Label of a position that takes no part in the loss."""


@dataclass(frozen=True)
class MaskToken:
    """The token that stands for a hidden one, and why it is that."""

    id: int
    token: str
    why: str


def choose_mask_token(tokenizer: PreTrainedTokenizerBase, wish: int | str = "auto") -> MaskToken:
    """The wish, a token or its id; "auto": the first there is of "_", the mask token, unk, the last ordinary token.

    "_" is the paper's choice. The last ordinary token of the vocabulary is, in a BPE vocabulary, the rarest merge. The
    tokenizer is never changed.

    Raises ConfigError if the wish is not in the vocabulary.
    """
    vocabulary = tokenizer.get_vocab()
    if isinstance(wish, int):
        if not 0 <= wish < len(tokenizer):
            raise ConfigError(f"MNTP(mask_token={wish}): expected an id below the vocabulary's {len(tokenizer)}.")
        return MaskToken(wish, str(tokenizer.convert_ids_to_tokens(wish)), "asked for")
    if wish != "auto":
        if wish not in vocabulary:
            raise ConfigError(
                f'MNTP(mask_token={wish!r}): not one token of this vocabulary. Use "auto", an id, or a token as '
                "`tokenizer.get_vocab()` spells it."
            )
        return MaskToken(vocabulary[wish], wish, "asked for")
    if "_" in vocabulary:
        return MaskToken(vocabulary["_"], "_", "the paper's choice")
    for name in ("mask", "unk"):
        token = getattr(tokenizer, f"{name}_token")
        if token is not None:
            return MaskToken(vocabulary[token], token, f'the vocabulary has no "_", this is its {name} token')
    special = set(tokenizer.all_special_ids)
    last = max(i for i in vocabulary.values() if i not in special)
    token = str(tokenizer.convert_ids_to_tokens(last))
    return MaskToken(last, token, 'the vocabulary has no "_", mask or unk token, this is its last ordinary token')


@dataclass(frozen=True)
class Masking:
    """How rows of token ids are masked."""

    rate: float
    scheme: MaskScheme
    mask_id: int
    vocab: int
    """Random tokens are drawn below this id."""
    special: Collection[int]
    """Ids that are neither hidden nor predicted."""

    def __call__(self, row: Sequence[int], seed: Sequence[int]) -> tuple[list[int], list[int]]:
        """The row with some tokens hidden, and the labels: the hidden token where there is one, else -100.

        Position 0 is never hidden, because nothing stands before it to predict it from. A row in which chance picks no
        token loses one token nevertheless; a row of special tokens alone loses none.
        """
        ids = np.array(row, dtype=np.int64)
        rng = np.random.Generator(np.random.PCG64(list(seed)))
        eligible = ~np.isin(ids, list(self.special))
        eligible[:1] = False
        hidden = eligible & (rng.random(len(ids)) < self.rate)
        if not hidden.any() and eligible.any():
            hidden[rng.choice(np.flatnonzero(eligible))] = True
        labels = np.where(hidden, ids, NOT_PREDICTED)
        fate = rng.random(len(ids)) if self.scheme == "bert" else np.zeros(len(ids))
        ids = np.where(hidden & (fate < 0.8), self.mask_id, ids)
        ids = np.where(hidden & (fate >= 0.9), rng.integers(self.vocab, size=len(ids)), ids)
        return ids.tolist(), labels.tolist()


def to_blocks(rows: Sequence[Sequence[int]], size: int, first: int | None) -> list[list[int]]:
    """The rows, joined in order and cut into blocks of exactly `size` tokens; what is left at the end is dropped.

    A block that begins in the middle of a text gets `first` (the token that opens every text, where there is one) put
    before it, so that position 0 looks as it does at inference. Data too short for one block gives one short block.
    """
    stream = [token for row in rows for token in row]
    blocks: list[list[int]] = []
    start = 0
    while start < len(stream):
        opening = [] if first is None or stream[start] == first else [first]
        end = start + size - len(opening)
        if end > len(stream) and blocks:
            break
        blocks.append(opening + stream[start:end])
        start = end
    return blocks
