"""Which items make up a batch: a function of the seed and the step."""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor

KEYS_AT_ONCE = 2**20
"""Keys that are compared with those of held-out items at a time."""
ALONE = -1
"""Stands for a text that no other item has."""


@dataclass(frozen=True)
class Batch:
    """The items of one optimiser step."""

    step: int
    epoch: int
    items: list[int]
    visits: list[int] = field(default_factory=list)
    """How often each item was seen before: the epoch, unless the item's source has a weight other than 1."""
    share: int = 0
    """Which share all items are of, by its place among the shares; 0 where a batch is of all of them."""

    def __post_init__(self) -> None:
        if not self.visits:
            object.__setattr__(self, "visits", [self.epoch] * len(self.items))


@dataclass(frozen=True)
class Share:
    """Items in a row, and how often each of them is seen in an epoch."""

    count: int
    weight: float = 1.0


def balanced(shares: Sequence[Share], exponent: float) -> tuple[Share, ...]:
    """The shares with weights that make each as large as weight x count ** exponent says, and all of them as they were.

    1 leaves them as they are; towards 0 the small ones are seen more often, until size no longer counts.
    Source: Conneau and Lample 2019 (arXiv 1901.07291), sec. 3.1, where the exponent is alpha (0.5); 0.3 in XLM-R
    (Conneau et al. 2020, arXiv 1911.02116).
    """
    filled = [share for share in shares if share.count]
    wanted = sum(share.weight * share.count**exponent for share in filled)
    scale = sum(share.weight * share.count for share in filled) / wanted if filled else 1.0
    # By the factor that changes: with 1 it is exactly 1, and so is each weight what it was.
    return tuple(
        replace(share, weight=share.weight * scale * share.count ** (exponent - 1)) if share.count else share
        for share in shares
    )


@dataclass(frozen=True)
class LeftOut:
    """Items of an epoch that no batch of it holds."""

    few: int
    """Left at the end, too few for a batch."""
    twice: int
    """With texts that stand in every batch that has room."""


@dataclass(frozen=True)
class _Walk:
    """One share within an epoch: its place among all shares and among those with items, and where its items begin."""

    share: int
    number: int
    first: int
    count: int
    seen: int


@dataclass(frozen=True)
class _Epoch:
    """The batches of an epoch: where each begins and ends in `items`, and its share; what each share leaves out."""

    number: int
    items: NDArray[Any]
    visits: NDArray[Any]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    shares: NDArray[np.int64]
    left_out: dict[int, LeftOut]


@dataclass
class Order:
    """An endless walk through the items of all shares, in batches of `size`, shuffled anew in every epoch.

    An epoch holds weight x count (rounded, at least one) of each share: the next ones in a walk of its own, which sees
    each item once before it sees one twice. What is left at an epoch's end and too short for a batch is dropped; it is
    another part in every epoch. Fewer items than `size` make one smaller batch per epoch.

    Batches are of all shares, or with `apart` of one each: then an epoch has as many batches of a share as its items
    make, at least one, which may be smaller, and they come in an order drawn from (seed, epoch).

    With `texts` no batch has a text twice. An item goes into the first batch of the epoch that has room and comes after
    every one that its texts were put into; if there is none, it is dropped for this epoch, and the last batches may be
    smaller. None is ever empty.
    """

    shares: Sequence[Share]
    size: int
    seed: int
    apart: bool = False
    """Whether a batch is of one share."""
    texts: Int[np.ndarray[Any, Any], "items texts"] | None = None
    """The texts of each item, as small numbers, equal where the texts are (see `numbered`); None: never mind."""

    def __post_init__(self) -> None:
        self.count = sum(share.count for share in self.shares)
        walks: list[_Walk] = []
        first = 0
        for place, share in enumerate(self.shares):
            if share.count:
                seen = max(1, round(share.weight * share.count))
                walks.append(_Walk(place, len(walks), first, share.count, seen))
            first += share.count
        self._groups = [[walk] for walk in walks] if self.apart else [walks]
        self._filled = len(walks)
        self.seen = sum(walk.seen for walk in walks)
        self.per_epoch = sum(self._batches(group)[1] for group in self._groups)
        self._epoch: _Epoch | None = None
        # As long as no item comes twice, only these have to be kept apart.
        self._common = (
            None if self.texts is None else np.where(np.bincount(self.texts.ravel())[self.texts] > 1, self.texts, ALONE)
        )

    def batch(self, step: int) -> Batch:
        """The batch of a step, the same whichever batches were asked for before."""
        number, place = divmod(step, self.per_epoch)
        epoch = self._walked(number)
        part = slice(epoch.starts[place], epoch.stops[place])
        share = int(epoch.shares[place])
        return Batch(step, number, epoch.items[part].tolist(), epoch.visits[part].tolist(), share)

    def smaller(self) -> dict[int, int]:
        """The size of the batches of each share, or of all together under 0, that has too few items for a whole one."""
        sizes = {self._share(group): self._batches(group)[0] for group in self._groups}
        return {share: size for share, size in sizes.items() if size < self.size}

    def left_out(self, epoch: int) -> dict[int, LeftOut]:
        """What each share, or all together under 0, gives to the epoch in vain, where it does."""
        return {share: left for share, left in self._walked(epoch).left_out.items() if left != LeftOut(0, 0)}

    def _share(self, group: Sequence[_Walk]) -> int:
        return group[0].share if self.apart else 0

    def _batches(self, group: Sequence[_Walk]) -> tuple[int, int]:
        """The size of the batches of a group in an epoch, and their number."""
        seen = sum(walk.seen for walk in group)
        # No more than there are where none may be there twice: a small share of weight 2 makes two batches.
        most = seen if self.texts is None else min(seen, sum(walk.count for walk in group))
        size = min(self.size, most)
        return size, seen // size

    def _missing(self, group: Sequence[_Walk], placed: int) -> LeftOut:
        size, batches = self._batches(group)
        return LeftOut(sum(walk.seen for walk in group) - size * batches, size * batches - placed)

    def _walked(self, number: int) -> _Epoch:
        """An epoch: share by share from (seed, visit, share), mixed from (seed, epoch), cut into batches."""
        if self._epoch is not None and self._epoch.number == number:
            return self._epoch
        self._epoch = None
        cuts = [self._cut(group, number) for group in self._groups]
        counts = np.concatenate([sizes for _, _, sizes in cuts])
        which = np.repeat(np.arange(len(cuts)), [len(sizes) for _, _, sizes in cuts])
        if len(cuts) > 1:
            _generator(self.seed, number, self._filled).shuffle(which)
        # The batches of each group stay in their order, at the places drawn for it.
        places = np.argsort(which, kind="stable")
        stops, starts = np.empty(len(which), np.int64), np.empty(len(which), np.int64)
        stops[places] = np.cumsum(counts)
        starts[places] = stops[places] - counts
        owners = np.array([self._share(group) for group in self._groups])
        self._epoch = _Epoch(
            number,
            _joined([items for items, _, _ in cuts]),
            _joined([visits for _, visits, _ in cuts]),
            starts,
            stops,
            owners[which],
            {
                self._share(group): self._missing(group, int(sizes.sum()))
                for group, (_, _, sizes) in zip(self._groups, cuts, strict=True)
            },
        )
        return self._epoch

    def _cut(self, group: Sequence[_Walk], epoch: int) -> tuple[NDArray[Any], NDArray[np.uint32], NDArray[np.int64]]:
        """Items of a group of shares and how often each was seen before, batch by batch, and the batches' sizes."""
        pieces = [piece for walk in group for piece in self._pieces(walk, epoch)]
        items = _joined([items for items, _ in pieces])
        visits = _joined([np.full(len(items), visit, np.uint32) for items, visit in pieces])
        if len(group) > 1:
            for part in (items, visits):
                _generator(self.seed, epoch, self._filled).shuffle(part)
        size, batches = self._batches(group)
        sizes = np.full(batches, size, np.int64)
        texts = self._common if len(pieces) == len(group) else self.texts
        if texts is not None and (found := _apart(texts[items], size, batches)) is not None:
            order = np.argsort(found, kind="stable")
            items, visits = items[order], visits[order]
            sizes = np.bincount(found, minlength=batches + 1)[:batches]
        whole = int(sizes.sum())
        return items[:whole], visits[:whole], sizes

    def _pieces(self, walk: _Walk, epoch: int) -> Iterator[tuple[NDArray[Any], int]]:
        """The next items of a share, in pieces, and how often those of a piece were seen before."""
        start, stop = epoch * walk.seen, (epoch + 1) * walk.seen
        while start < stop:
            visit, place = divmod(start, walk.count)
            items = np.arange(walk.count, dtype=np.uint32 if self.count < 2**32 else np.int64)
            _generator(self.seed, visit, walk.number).shuffle(items)
            piece = items[place : place + stop - start]
            yield walk.first + piece, visit
            start += len(piece)


def _joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    # One that stands alone may be large, and needs no copy.
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _apart(texts: NDArray[Any], size: int, batches: int) -> NDArray[np.int64] | None:
    """The batch of each item, `batches` for none, where no batch has a text twice; None: any cut will do.

    ALONE is no text. Every batch gets at least one item if there are `size` for each: an item goes into an empty batch
    rather than beyond it.
    """
    if (texts == ALONE).all():
        return None
    found = np.full(len(texts), batches, np.int64)
    # The first batch that a text may still go into; the first one from a batch on that has room, by hops.
    free: dict[int, int] = {}
    hop = list(range(batches + 1))
    room = [size] * batches
    for place, own in enumerate(texts.tolist()):
        # Nothing is ever put down for ALONE.
        batch = max([free.get(text, 0) for text in own])
        while (after := hop[batch]) != batch:
            hop[batch] = hop[after]
            batch = after
        if batch == batches:
            continue
        found[place] = batch
        room[batch] -= 1
        if not room[batch]:
            hop[batch] = batch + 1
        for text in own:
            if text != ALONE:
                free[text] = batch + 1
    return found


def _generator(seed: int, number: int, kind: int) -> np.random.Generator:
    # The key apart from the entropy, where a 0 at the end would count for nothing: masks are drawn from there.
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, number), spawn_key=(kind,))))


def numbered(keys: Iterable[Hashable]) -> NDArray[np.int64]:
    """A number for each key, equal where the keys are: 0, 1, ... as they first come."""
    numbers: dict[Hashable, int] = {}
    return np.fromiter((numbers.setdefault(key, len(numbers)) for key in keys), np.int64)


def split_held_out(
    keys: Sequence[Hashable] | NDArray[np.uint64], most: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions that are held out, and all that must not be trained on: those, and every other with the key of one.

    At most `most` and a tenth of all are held out. Both rise.
    """
    size = min(most, len(keys) // 10)
    held_out = np.array(sorted(random.Random(f"{seed}/held-out").sample(range(len(keys)), size)), np.int64)
    if not isinstance(keys, np.ndarray):
        keys = numbered(keys).astype(np.uint64)
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
