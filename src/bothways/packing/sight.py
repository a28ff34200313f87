"""The texts of one row, and who sees whom within each: what attention is told in place of a mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers.masking_utils import and_masks, bidirectional_mask_function


@dataclass(frozen=True)
class Texts:
    """Texts that stand one after the other in one row."""

    lengths: tuple[int, ...]
    device: torch.device

    @cached_property
    def runs(self) -> list[tuple[int, int, int]]:
        """(first token, number of texts, length of each) of neighbours of one length, which are computed together."""
        found: list[tuple[int, int, int]] = []
        start = 0
        for length in self.lengths:
            if found and found[-1][2] == length:
                found[-1] = (found[-1][0], found[-1][1] + 1, length)
            else:
                found.append((start, 1, length))
            start += length
        return found

    @property
    def longest(self) -> int:
        """Tokens of the longest."""
        return max(self.lengths)

    @cached_property
    def bounds(self) -> Int[Tensor, " bounds"]:
        """Where each text begins, and where the last one ends; as the kernels want it, int32 and on the device."""
        ends = torch.tensor([0, *self.lengths]).cumsum(0)
        return ends.to(torch.int32).to(self.device)

    @cached_property
    def positions(self) -> Int[Tensor, " tokens"]:
        """Of each token in its text, on the device."""
        return torch.cat([torch.arange(length) for length in self.lengths]).to(self.device)

    @cached_property
    def owners(self) -> Int[Tensor, " tokens"]:
        """Number of the text that each token belongs to, on the device."""
        return torch.repeat_interleave(torch.arange(len(self.lengths)), torch.tensor(self.lengths)).to(self.device)


@dataclass
class Sight:
    """Handed to attention modules in place of a mask: the texts of the row, and who sees whom within each.

    A plain object, and not something the model's code looks up, so that it is there again when a checkpointed layer is
    computed a second time.
    """

    texts: Texts
    rule: Callable[..., Any]
    """transformers' own: (batch, head, query, key) indices -> whether the one sees the other."""
    masks: dict[int, Bool[Tensor, "1 1 queries keys"] | None] = field(default_factory=dict)

    def mask(self, length: int) -> Bool[Tensor, "1 1 queries keys"] | None:
        """For a text of this many tokens, True where the query (row) sees the key; None if every token sees all."""
        if length not in self.masks:
            self.masks[length] = self._mask(length)
        return self.masks[length]

    def _mask(self, length: int) -> Tensor | None:
        if self.rule is bidirectional_mask_function:
            return None
        place = torch.arange(length, device=self.texts.device)
        found: Tensor = self.rule(0, 0, place[:, None], place[None, :]).expand(length, length)
        return None if bool(found.all()) else found.view(1, 1, length, length)

    @cached_property
    def band(self) -> tuple[int, int] | None:
        """How far a token sees to the left and to the right, -1 for all the way; None if that is not one rule for all.

        What the varlen kernel understands. Read off the longest text.
        """
        mask = self.mask(self.texts.longest)
        if mask is None:
            return -1, -1
        place = torch.arange(self.texts.longest, device=mask.device)
        ahead = place[None, :] - place[:, None]
        seen = ahead[mask[0, 0]]
        left, right = -int(seen.min()), int(seen.max())
        if not torch.equal(mask[0, 0], (ahead >= -left) & (ahead <= right)):
            return None
        last = self.texts.longest - 1
        return (-1 if left == last else left), (-1 if right == last else right)

    @cached_property
    def block_mask(self) -> Any:
        """The whole row's, for flex attention."""
        from torch.nn.attention.flex_attention import create_block_mask

        texts, tokens = self.texts, sum(self.texts.lengths)
        place, owner = texts.positions, texts.owners
        rule = and_masks(
            lambda batch, head, query, key: owner[query] == owner[key],
            lambda batch, head, query, key: self.rule(batch, head, place[query], place[key]),
        )
        make = torch.compile(create_block_mask) if texts.device.type == "cuda" else create_block_mask
        return make(rule, None, None, tokens, tokens, device=str(texts.device))
