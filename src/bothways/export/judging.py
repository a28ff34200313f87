"""How near is near, and which of two references vectors are nearer to. Arrays only, nothing of models.

Everything is compared at unit length. What an int8 engine returns may be further from its own reference than the two
references are from each other on a short text: such a text has no vote.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bothways.errors import ConfigError, DataError, did_you_mean
from bothways.provenance import Direction

Match = Literal["bidirectional", "causal", "either", "neither"]
OTHER: Mapping[Direction, Direction] = {"bidirectional": "causal", "causal": "bidirectional"}
EXACT = 1e-4
"""Largest difference of a number between unit vectors computed in float32 by two engines; they come to about 1e-6."""
COSINES = {"float16": 0.9999, "q8_0": 0.999, "bfloat16": 0.995, "int8": 0.99}
"""Lowest cosine of an engine that computes in another number format."""
FORMATS = ("float32", *COSINES)
APART = 1e-3
"""Distance of the two references of a text, both of unit length, from which it can tell them apart."""
NEARER = 3.0
"""How many times further away the other reference must be for a text to decide."""


@dataclass(frozen=True)
class Distances:
    """Of each text's vector to one reference: arrays of shape (texts,)."""

    cosine: np.ndarray
    difference: np.ndarray
    """Largest difference of a number."""
    distance: np.ndarray
    near: np.ndarray


@dataclass(frozen=True)
class Compared:
    """Some texts' distances to both references, and what each text says: arrays of shape (texts,)."""

    to: Mapping[Direction, Distances]
    votes: Mapping[Direction, np.ndarray]
    """Whether a text is clearly nearer to a reference than to the other."""
    apart: np.ndarray
    """Whether the references of a text differ enough to be told apart."""

    def __getitem__(self, part: slice) -> Compared:
        to = {way: Distances(*(values[part] for values in vars(found).values())) for way, found in self.to.items()}
        return Compared(to, {way: votes[part] for way, votes in self.votes.items()}, self.apart[part])

    def is_near(self, direction: Direction) -> bool:
        """Whether every text is near a reference and none speaks for the other."""
        return bool(self.to[direction].near.all() and not self.votes[OTHER[direction]].any())

    def match(self) -> Match:
        """What these texts are near to; "either" where they cannot tell."""
        near = [direction for direction in OTHER if self.is_near(direction)]
        decided = [direction for direction in near if self.votes[direction].any()]
        return decided[0] if decided else "either" if near else "neither"

    def verdict(self) -> Literal["bidirectional", "causal", "neither"]:
        """A reference that all texts are near to, for which at least half of those speak that can tell.

        Raises DataError if none can.
        """
        able = int(self.apart.sum())
        if not able:
            raise DataError(
                "verify: on these texts the bidirectional and the causal vectors are the same, so that nothing can be "
                "told. Pass longer texts."
            )
        for direction in OTHER:
            if self.is_near(direction) and 2 * int(self.votes[direction].sum()) >= able:
                return direction
        return "neither"


@dataclass(frozen=True)
class Judge:
    """What counts as near: a largest difference, or a lowest cosine."""

    difference: float | None
    cosine: float | None
    why: str

    @classmethod
    def of(cls, tolerance: float | None, number_format: str | None) -> Judge:
        """Raises ConfigError for a tolerance below 0 or an unknown number format."""
        if tolerance is not None:
            if not tolerance > 0:
                raise ConfigError(f"verify: tolerance={tolerance}, expected a difference above 0, as {EXACT}.")
            return cls(tolerance, None, "as asked")
        if number_format is None:
            lowest = min(COSINES.values())
            return cls(None, lowest, "an engine that does not say what it computes in")
        if number_format not in FORMATS:
            raise ConfigError(
                f'verify: number_format="{number_format}" is not known. {did_you_mean(number_format, FORMATS)}'
            )
        if number_format == "float32":
            return cls(EXACT, None, number_format)
        return cls(None, COSINES[number_format], number_format)

    @property
    def allowed(self) -> str:
        """What is asked, in words."""
        asked = f"difference at most {self.difference:.0e}" if self.cosine is None else f"cosine at least {self.cosine}"
        return f"near is a {asked} ({self.why})"

    def distances(self, found: np.ndarray, reference: np.ndarray) -> Distances:
        """Of unit vectors (texts, dim) to others, row by row."""
        apart = found - reference
        distance = np.linalg.norm(apart, axis=1)
        cosine = np.einsum("td,td->t", found, reference)
        difference = np.abs(apart).max(axis=1)
        near = cosine >= self.cosine if self.difference is None else difference <= self.difference
        return Distances(cosine, difference, distance, near)

    def compare(self, found: np.ndarray, references: Mapping[Direction, np.ndarray]) -> Compared:
        """Unit vectors (texts, dim) with those of both directions."""
        to = {direction: self.distances(found, reference) for direction, reference in references.items()}
        apart = np.linalg.norm(references["bidirectional"] - references["causal"], axis=1) >= APART
        votes = {
            direction: apart & (NEARER * to[direction].distance <= to[OTHER[direction]].distance) for direction in OTHER
        }
        return Compared(to, votes, apart)
