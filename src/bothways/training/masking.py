"""Which tokens MNTP hides, and behind what: drawn from (seed, epoch, row), so that no resume changes it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from bothways.errors import ConfigError
from bothways.training.settings import MaskScheme
from bothways.training.words import Words

NOT_PREDICTED = -100
"""Label of a position that takes no part in the loss."""


@dataclass(frozen=True)
class MaskToken:
    """The token that stands for a hidden one, and why it is that."""

    id: int
    token: str
    why: str
    new: bool = False
    """It is no token of the vocabulary but a row of the embedding that was made to be it."""


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

    scheme: MaskScheme
    mask_id: int
    vocab: int
    """Random tokens are drawn below this id."""
    special: Collection[int]
    """Ids that are neither hidden nor predicted."""
    words: Words | None = None
    """Hide whole words; None: tokens, each on its own."""

    @cached_property
    def _ordinary(self) -> NDArray[np.bool_]:
        """By id, whether it may be hidden; one more for all ids beyond."""
        table = np.ones(max(self.special, default=0) + 2, dtype=bool)
        table[list(self.special)] = False
        return table

    def __call__(
        self, row: Sequence[int] | NDArray[np.int64], seed: Sequence[int], rate: float | None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The row with some tokens hidden, and the labels: the hidden token where there is one, else -100.

        Each token is hidden with probability `rate`, alone or with its word; None draws the row's rate from U(0, 1).
        All is drawn from `seed`, so that a row is masked alike wherever and beside whatever it is computed.

        Position 0 is never hidden, because nothing stands before it to predict it from; what follows of its word is a
        word of its own. A row in which chance picks no token loses one token (or word) nevertheless; a row of special
        tokens alone loses none. Of a hidden word each token is masked, replaced or kept by a draw of its own.

        Source: LLM2Vec (arXiv 2404.05961), sec. 2.2; 80/10/10: Devlin et al. 2019 (arXiv 1810.04805), sec. 3.1; whole
        words: Cui et al. 2019 (arXiv 1906.08101); a rate per row: Sahoo et al. 2024 (arXiv 2406.07524) and
        LLaDA (Nie et al. 2025, arXiv 2502.09992), without the weight 1 / rate that makes their loss a likelihood.
        """
        ids = np.asarray(row, dtype=np.int64)
        rng = np.random.Generator(np.random.PCG64(list(seed)))
        rate = rng.random() if rate is None else rate
        eligible = self._ordinary[np.minimum(ids, len(self._ordinary) - 1)]
        eligible[:1] = False
        chance = rng.random(len(ids))
        # One number a word: that of its first token.
        first = None if self.words is None else np.maximum(self.words.first_tokens(ids), 1)
        drawn = chance if first is None else chance[np.minimum(first, len(ids) - 1)]
        hidden = eligible & (drawn < rate)
        if not hidden.any() and eligible.any():
            one = rng.choice(np.flatnonzero(eligible))
            hidden = np.arange(len(ids)) == one if first is None else eligible & (first == first[one])
        labels = np.where(hidden, ids, NOT_PREDICTED)
        if self.scheme == "all":
            return np.where(hidden, self.mask_id, ids), labels
        fate = rng.random(len(ids))
        ids = np.where(hidden & (fate < 0.8), self.mask_id, ids)
        return np.where(hidden & (fate >= 0.9), rng.integers(self.vocab, size=len(ids)), ids), labels


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
