"""Which items make up a batch: a function of the seed and the step."""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from numpy.typing import NDArray
from torch import Tensor

KEYS_AT_ONCE = 2**20
"""Keys that are compared with those of held-out items at a time."""


@dataclass(frozen=True)
class Batch:
    """The items of one optimiser step."""

    step: int
    epoch: int
    items: list[int]
    visits: list[int] = field(default_factory=list)
    """How often each item was seen before: the epoch, unless the item's source has a weight other than 1."""

    def __post_init__(self) -> None:
        if not self.visits:
            object.__setattr__(self, "visits", [self.epoch] * len(self.items))


@dataclass(frozen=True)
class Share:
    """Items in a row, and how often each of them is seen in an epoch."""

    count: int
    weight: float = 1.0


@dataclass
class Order:
    """An endless walk through the items of all shares, in batches of `size`, shuffled anew in every epoch.

    An epoch holds weight x count (rounded, at least one) of each share: the next ones in a walk of its own, which sees
    each item once before it sees one twice. What is left at an epoch's end and too short
    for a batch is dropped; it is another part in every epoch. Fewer items than `size` make one smaller batch per epoch.
    """

    shares: Sequence[Share]
    size: int
    seed: int

    def __post_init__(self) -> None:
        self.count = sum(share.count for share in self.shares)
        self._shares = [
            (share.count, max(1, round(share.weight * share.count))) for share in self.shares if share.count
        ]
        seen = sum(seen for _, seen in self._shares)
        self.size = min(self.size, seen)
        self.per_epoch = seen // self.size
        self._epoch, self._items, self._visits = -1, np.empty(0, np.int64), np.empty(0, np.int64)

    def batch(self, step: int) -> Batch:
        """The batch of a step, the same whichever batches were asked for before."""
        epoch, number = divmod(step, self.per_epoch)
        if self._epoch != epoch:
            self._shuffle(epoch)
        part = slice(number * self.size, (number + 1) * self.size)
        return Batch(step, epoch, self._items[part].tolist(), self._visits[part].tolist())

    def _shuffle(self, epoch: int) -> None:
        """The items of an epoch in their order: share by share from (seed, visit, share), mixed from (seed, epoch)."""
        first, walks = 0, []
        for number, (count, seen) in enumerate(self._shares):
            walks += [(first + items, visit) for items, visit in self._walk(number, count, seen, epoch)]
            first += count
        self._epoch = epoch
        self._items = np.concatenate([items for items, _ in walks])
        self._visits = np.concatenate([np.full(len(items), visit, np.uint32) for items, visit in walks])
        if len(self._shares) > 1:
            for part in (self._items, self._visits):
                _generator(self.seed, epoch, len(self._shares)).shuffle(part)

    def _walk(self, number: int, count: int, seen: int, epoch: int) -> Iterator[tuple[NDArray[Any], int]]:
        """The next `seen` items of a share, in pieces, and how often those of a piece were seen before."""
        start, stop = epoch * seen, (epoch + 1) * seen
        while start < stop:
            visit, place = divmod(start, count)
            items = np.arange(count, dtype=np.uint32 if self.count < 2**32 else np.int64)
            _generator(self.seed, visit, number).shuffle(items)
            piece = items[place : place + stop - start]
            yield piece, visit
            start += len(piece)


def _generator(seed: int, number: int, kind: int) -> np.random.Generator:
    # The key apart from the entropy, where a 0 at the end would count for nothing: masks are drawn from there.
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, number), spawn_key=(kind,))))


def split_held_out(
    keys: Sequence[Hashable] | NDArray[np.uint64], most: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions that are held out, and all that must not be trained on: those, and every other with the key of one.

    At most `most` and a tenth of all are held out. Both rise.
    """
    size = min(most, len(keys) // 10)
    held_out = np.array(sorted(random.Random(f"{seed}/held-out").sample(range(len(keys)), size)), np.int64)
    if not isinstance(keys, np.ndarray):
        numbers: dict[Hashable, int] = {}
        keys = np.fromiter((numbers.setdefault(key, len(numbers)) for key in keys), np.uint64, len(keys))
    taken = np.unique(keys[held_out])
    left_out = [
        start + np.flatnonzero(np.isin(keys[start : start + KEYS_AT_ONCE], taken))
        for start in range(0, len(keys), KEYS_AT_ONCE)
    ]
    return held_out, np.concatenate([np.empty(0, np.int64), *left_out])


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
