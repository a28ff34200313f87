"""Tokenised texts as flat numbers: on disk for files, tokenised once and found again; in memory for lists."""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from io import BufferedIOBase
from itertools import chain, groupby, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bothways.data import Origin

TEXTS_AT_ONCE = 1024
LETTERS_AT_ONCE = 2**22
"""So much is given to the tokenizer's threads at a time, and is in memory beside what they make of it."""
TOKENS_AT_ONCE = 2**20
"""Tokens read from a file at a time, where all of them are looked at."""

Encode = Callable[[list[str]], Sequence[Sequence[int]]]
"""Texts -> the ids of each, at least one."""


class OnDisk:
    """The int32 numbers of a file by slices. Not a memory map: its pages would count as this process's memory."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def __getitem__(self, part: slice) -> NDArray[np.int32]:
        return np.frombuffer(os.pread(self._file, 4 * (part.stop - part.start), 4 * part.start), np.int32)


@dataclass(frozen=True)
class Store:
    """The tokens of the texts of one source, end to end."""

    ids: OnDisk | NDArray[np.int32]
    offsets: NDArray[np.int64]
    """Where each text begins, and where the last one ends."""
    hashes: NDArray[np.uint64]
    """One for each text, of its ids: texts with equal ids are the same text to a model."""
    opening: int | None
    """The token with which every text begins; None if they differ."""
    origin: Origin | None = None
    """The source; None for a list of texts."""

    def __len__(self) -> int:
        return len(self.hashes)


def write(
    texts: Iterable[str], encode: Encode, ids: BufferedIOBase, offsets: BufferedIOBase, hashes: BufferedIOBase
) -> tuple[int, int, int | None]:
    """Tokenise texts into three streams of numbers, as `Store` has them. Returns texts, tokens, the opening token."""
    count = end = 0
    openings: set[int] = set()
    offsets.write(np.int64(0).tobytes())
    for batch in _batches(texts):
        rows = encode(batch)
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        ends = np.cumsum(lengths)
        flat = np.fromiter(chain.from_iterable(rows), np.int32, int(ends[-1]))
        ids.write(flat.data)
        offsets.write((end + ends).data)
        raw = flat.tobytes()
        for start, stop in pairwise([0, *(4 * ends).tolist()]):
            hashes.write(hashlib.blake2b(raw[start:stop], digest_size=8).digest())
        openings.update(flat[ends - lengths].tolist())
        count, end = count + len(rows), end + int(ends[-1])
    return count, end, openings.pop() if len(openings) == 1 else None


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    letters = 0
    for text in texts:
        batch.append(text)
        letters += len(text)
        if len(batch) == TEXTS_AT_ONCE or letters >= LETTERS_AT_ONCE:
            yield batch
            batch, letters = [], 0
    if batch:
        yield batch


class Tokens:
    """The texts of some stores, or some of them, in order: `tokens[i]` is the ids of one; also one stream of tokens."""

    def __init__(self, stores: Sequence[Store], runs: NDArray[np.int64] | None = None) -> None:
        """`runs` are the texts that belong to it, as rows of (first, behind the last), counted over all stores."""
        self.stores = tuple(stores)
        bounds = np.cumsum([0, *map(len, self.stores)])
        runs = np.array([[0, bounds[-1]]]) if runs is None else runs
        runs = np.concatenate([np.clip(runs, low, high) for low, high in pairwise(bounds)] or [np.empty((0, 2), int)])
        self._runs = runs[runs[:, 0] < runs[:, 1]]
        self._store = np.searchsorted(bounds, self._runs[:, 0], side="right") - 1
        self._local = self._runs - bounds[self._store][:, None]
        spans = [self.stores[s].offsets[run] for s, run in zip(self._store, self._local, strict=True)]
        self._spans = np.array(spans, np.int64).reshape(-1, 2)
        self._texts = _running_sum(self._runs)
        self._tokens = _running_sum(self._spans)

    def __len__(self) -> int:
        return int(self._texts[-1])

    def __getitem__(self, number: int) -> list[int]:
        number = range(len(self))[number]
        run = int(np.searchsorted(self._texts, number, side="right")) - 1
        store = self.stores[self._store[run]]
        place = int(self._local[run, 0] + number - self._texts[run])
        ids: list[int] = store.ids[int(store.offsets[place]) : int(store.offsets[place + 1])].tolist()
        return ids

    def __iter__(self) -> Iterator[list[int]]:
        return (self[number] for number in range(len(self)))

    @property
    def tokens(self) -> int:
        """Tokens of all texts."""
        return int(self._tokens[-1])

    def stream(self, start: int, stop: int) -> NDArray[np.int32]:
        """Tokens number `start` to `stop` (not included) of all texts joined; fewer, where there are fewer."""
        first = int(np.searchsorted(self._tokens, start, side="right")) - 1
        parts = []
        for run in range(first, len(self._runs)):
            before = int(self._tokens[run])
            if before >= stop:
                break
            shift = int(self._spans[run, 0]) - before
            end = min(stop, int(self._tokens[run + 1]))
            parts.append(self.stores[self._store[run]].ids[max(start, before) + shift : end + shift])
        return np.concatenate(parts) if parts else np.empty(0, np.int32)

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each text."""
        lengths = np.empty(len(self), np.int32)
        for run, (first, last) in enumerate(self._local):
            offsets, part = self.stores[self._store[run]].offsets, lengths[self._texts[run] : self._texts[run + 1]]
            np.subtract(offsets[first + 1 : last + 1], offsets[first:last], out=part, casting="unsafe")
        return lengths

    @property
    def hashes(self) -> NDArray[np.uint64]:
        """One number per text; equal where all ids are."""
        return np.concatenate([np.empty(0, np.uint64), *self._hashes()])

    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of all texts' ids in their order."""
        digest = hashlib.sha256()
        for part in self._hashes():
            digest.update(part.tobytes())
        return digest.hexdigest()

    def opens_with(self, token: int | None) -> bool:
        """Whether every text of the stores begins with this token."""
        return token is not None and all(store.opening == token for store in self.stores if len(store))

    def only(self, numbers: NDArray[np.int64]) -> Tokens:
        """The texts with these numbers, which rise."""
        places = self._places(numbers)
        return Tokens(self.stores, np.stack([places, places + 1], axis=1))

    def without(self, numbers: NDArray[np.int64]) -> Tokens:
        """All texts but those with these numbers."""
        places = self._places(numbers)
        begins, ends = np.concatenate([self._runs[:, 0], places + 1]), np.concatenate([places, self._runs[:, 1]])
        return Tokens(self.stores, np.stack([np.sort(begins), np.sort(ends)], axis=1))

    @property
    def origins(self) -> list[Origin]:
        """What came from where: the sources, with the number of texts that are here."""
        counts = np.bincount(self._store, self._runs[:, 1] - self._runs[:, 0], len(self.stores)).astype(int).tolist()
        pairs = zip(self.stores, counts, strict=True)
        return [replace(store.origin, rows=count) for store, count in pairs if store.origin is not None]

    def by_weight(self) -> list[tuple[float, Tokens]]:
        """The texts, cut where the weight of their sources changes."""
        weights = [1.0 if store.origin is None else store.origin.weight for store in self.stores]
        runs = groupby(zip(self._store, self._runs, strict=True), key=lambda pair: weights[pair[0]])
        return [(weight, Tokens(self.stores, np.array([run for _, run in group]))) for weight, group in runs]

    @property
    def weights(self) -> list[tuple[float, int]]:
        """The weights of the sources, and how many texts in a row have each."""
        return [(weight, len(part)) for weight, part in self.by_weight()]

    def _hashes(self) -> Iterator[NDArray[np.uint64]]:
        for number, (first, last) in zip(self._store, self._local, strict=True):
            yield self.stores[number].hashes[first:last]

    def _places(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers in this view -> numbers over all stores."""
        run = np.searchsorted(self._texts, numbers, side="right") - 1
        places: NDArray[np.int64] = self._runs[run, 0] + numbers - self._texts[run]
        return places


class Blocks:
    """Texts joined in order and cut into blocks of exactly `size` tokens, as `masking.to_blocks` cuts lists.

    `first` is the token that opens every text, or None. Where the weight of the sources changes, so does the block.
    """

    def __init__(self, tokens: Tokens, size: int, first: int | None) -> None:
        self.size, self.first = size, first
        self._parts = [(weight, part, _starts(part, size, first)) for weight, part in tokens.by_weight()]
        self._before = np.cumsum([0, *(len(starts) for _, _, starts in self._parts)])

    def __len__(self) -> int:
        return int(self._before[-1])

    def __getitem__(self, number: int) -> list[int]:
        number = range(len(self))[number]
        part = int(np.searchsorted(self._before, number, side="right")) - 1
        _, tokens, starts = self._parts[part]
        start = int(starts[number - self._before[part]])
        block: list[int] = tokens.stream(start, start + self.size).tolist()
        return block if self.first is None or block[0] == self.first else [self.first, *block[: self.size - 1]]

    def __iter__(self) -> Iterator[list[int]]:
        return (self[number] for number in range(len(self)))

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each block: `size`, but for the only block of too little data."""
        lengths = np.full(len(self), self.size, np.int32)
        for part, count in enumerate(np.diff(self._before)):
            if count == 1:
                place = int(self._before[part])
                lengths[place] = len(self[place])
        return lengths

    @property
    def weights(self) -> list[tuple[float, int]]:
        """The weights of the sources, and how many blocks in a row have each."""
        return [(weight, len(starts)) for weight, _, starts in self._parts]


def _starts(tokens: Tokens, size: int, first: int | None) -> NDArray[np.int64]:
    """Where in the stream each block begins."""
    total = tokens.tokens
    if first is None:
        return np.arange(max(1, total // size) if total else 0) * size
    starts = np.empty(total // max(1, size - 1) + 1, np.int64)
    count = start = begin = 0
    chunk: NDArray[np.int32] = np.empty(0, np.int32)
    while start < total:
        if start >= begin + len(chunk):
            begin, chunk = start, tokens.stream(start, start + TOKENS_AT_ONCE)
        end = start + size - (0 if chunk[start - begin] == first else 1)
        if end > total and count:
            break
        starts[count] = start
        count, start = count + 1, end
    return starts[:count].copy()


def _running_sum(pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """0 and the sums of the sizes of the first, the first two, ... of some (begin, end)."""
    return np.concatenate([[0], np.cumsum(pairs[:, 1] - pairs[:, 0])])
