"""Texts -> rows of ids, a window of texts at a time, tokenised in the background while the model computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bothways.encoding.asked import Asked
from bothways.errors import DataError
from bothways.text import TextIds

WINDOW = 16_384
"""Texts that are tokenised, sorted and computed together: what is in memory as ids."""
AROUND = tuple[str, str]
"""What stands before a text and after it."""
Tokenise = Callable[[Sequence[str], Sequence[AROUND]], list[TextIds]]
Split = Callable[[str, AROUND], list[tuple[int, TextIds]]]
"""A text that is too long -> where each of its pieces begins, and its ids."""


@dataclass(frozen=True)
class Item:
    """One text: the rows that are computed for it. Only a text in pieces has several."""

    rows: tuple[TextIds, ...]
    starts: tuple[int, ...] = (0,)
    """Where each row begins in the text, in characters."""

    def __len__(self) -> int:
        return sum(map(len, self.rows))


def distinct(texts: Sequence[str], around: Sequence[AROUND]) -> tuple[list[int], list[int]]:
    """Positions of the first of all equal texts, and for each text which of those it is."""
    known: dict[tuple[str, AROUND], int] = {}
    firsts: list[int] = []
    places: list[int] = []
    for position, key in enumerate(zip(texts, around, strict=True)):
        place = known.setdefault(key, len(firsts))
        if place == len(firsts):
            firsts.append(position)
        places.append(place)
    return firsts, places


class Reader:
    """Makes items of texts as `asked`, and counts those that are too long."""

    def __init__(self, tokenise: Tokenise, split: Split, max_length: int, asked: Asked) -> None:
        self.tokenise, self.split, self.max_length, self.asked = tokenise, split, max_length, asked
        self.too_long: list[int] = []
        """Positions of the texts that have more than `max_length` tokens."""

    def items(self, texts: Sequence[str], around: Sequence[AROUND], positions: Sequence[int]) -> list[Item]:
        """The items at some positions. Raises DataError at the first that is too long, where that is asked."""
        mine, beside = [texts[position] for position in positions], [around[position] for position in positions]
        found = []
        for position, text, pair, row in zip(positions, mine, beside, self.tokenise(mine, beside), strict=True):
            if not row.cut:
                found.append(Item((row,)))
                continue
            self.too_long.append(position)
            if self.asked.overflow == "error":
                raise DataError(
                    f"{self.asked.call}: texts[{position}] ({len(text):,} characters) has more than max_length="
                    f'{self.max_length} tokens. Shorten it, or use overflow="chunk" or overflow="truncate".'
                )
            if self.asked.overflow == "chunk":
                starts, rows = zip(*self.split(text, pair), strict=True)
                found.append(Item(tuple(rows), tuple(starts)))
            else:
                found.append(Item((row,)))
        return found
