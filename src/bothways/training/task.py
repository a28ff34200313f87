"""What a stage teaches, as the loop sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from bothways.encoder import Encoder
from bothways.training.batches import Batch, Order
from bothways.training.processes import Place

Cut = Callable[[Sequence[int]], list[list[int]]]
"""Lengths of rows -> positions of those that go through the model together."""


@dataclass(frozen=True)
class Part:
    """A share of a batch's loss, small enough for the memory; the parts of a batch, on all processes, add up to it."""

    loss: Tensor
    tokens: int


@runtime_checkable
class Task(Protocol):
    """What a stage teaches."""

    name: str
    encoder: Encoder
    order: Order
    """Which items to train on make up which batch."""
    longest: int
    """Tokens of the longest row."""
    facts: Mapping[str, Any]
    """What the record says of the stage besides settings and scores: data, mask token, ..."""

    def start(self, cut: Cut) -> str:
        """What to say before the first step, also of a resumed run. Raises TrainingError if nothing can be learnt."""

    def parts(self, batch: Batch, place: Place, cut: Cut) -> Iterator[Part]:
        """The parts of the batch that are this process's; the gradient of each is taken before the next is made.

        Where `place.in_step`, every process has to make the same number of them (see `shares`).
        """

    def scores(self, cut: Cut) -> dict[str, float]:
        """Measured on what is held out; "loss" among them. Empty if nothing is."""


@dataclass(frozen=True)
class Group:
    """Rows that go through the model together. `weight` is 0 for one that only keeps this process in step."""

    rows: list[int]
    weight: float = 1.0


def shares(lengths: Sequence[int], place: Place, cut: Cut) -> list[Group]:
    """What this process computes of rows of these lengths: positions of rows, group by group.

    Every process knows all rows, so that where `place.in_step` it also knows how many groups the others have, and
    makes up for those that it lacks with its shortest row.
    """
    dealt = [list(range(rank, len(lengths), place.processes)) for rank in range(place.processes)]
    groups = [[[rows[i] for i in group] for group in cut([lengths[i] for i in rows])] for rows in dealt]
    own = [Group(group) for group in groups[place.rank]]
    if not place.in_step:
        return own
    shortest = min(range(len(lengths)), key=lambda i: lengths[i])
    return own + [Group([shortest], 0.0)] * (max(map(len, groups)) - len(own))
