"""Which items make up a batch: a function of the seed and the step."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """The items of one optimiser step."""

    step: int
    epoch: int
    items: list[int]


@dataclass
class Order:
    """An endless walk through `count` items in batches of `size`, shuffled anew in every epoch.

    What is left at an epoch's end and too short for a batch is dropped; it is another part in every epoch. Fewer items
    than `size` make one smaller batch per epoch.
    """

    count: int
    size: int
    seed: int

    def __post_init__(self) -> None:
        self.size = min(self.size, self.count)
        self.per_epoch = self.count // self.size
        self._shuffled: tuple[int, list[int]] = (-1, [])

    def batch(self, step: int) -> Batch:
        """The batch of a step, the same whichever batches were asked for before."""
        epoch, number = divmod(step, self.per_epoch)
        if self._shuffled[0] != epoch:
            items = list(range(self.count))
            random.Random(f"{self.seed}/{epoch}").shuffle(items)
            self._shuffled = (epoch, items)
        start = number * self.size
        return Batch(step, epoch, self._shuffled[1][start : start + self.size])


def split_held_out(keys: Sequence[Hashable], most: int, seed: int) -> tuple[list[int], list[int]]:
    """Positions to train on and positions held out: at most `most` and a tenth of all, and no key on both sides."""
    size = min(most, len(keys) // 10)
    drawn = sorted(random.Random(f"{seed}/held-out").sample(range(len(keys)), size))
    taken, chosen = {keys[i] for i in drawn}, set(drawn)
    return [i for i, key in enumerate(keys) if i not in chosen and key not in taken], drawn


def same_meaning(queries: Sequence[Hashable], documents: Sequence[Hashable]) -> Bool[Tensor, "queries documents"]:
    """True where a document is no negative of a query: it is one of the positives that this query has in the batch.

    `documents[i]` is the positive of `queries[i]`. Texts are equal if their keys are.
    """
    numbers: dict[Hashable, int] = {}
    ids = [numbers.setdefault(document, len(numbers)) for document in documents]
    positives: dict[Hashable, set[int]] = {}
    for query, number in zip(queries, ids, strict=False):
        positives.setdefault(query, set()).add(number)
    belongs = torch.zeros((len(queries), len(numbers)), dtype=torch.bool)
    for row, query in enumerate(queries):
        belongs[row, list(positives[query])] = True
    return belongs[:, ids]
