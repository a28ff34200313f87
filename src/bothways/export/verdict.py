"""What was found of an engine: case by case, and in one sentence."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from bothways.errors import VerificationError
from bothways.export.judging import OTHER, Match
from bothways.provenance import Direction


@dataclass(frozen=True)
class Near:
    """How near a case's vectors are to a reference, the worst of its texts; both of unit length."""

    cosine: float
    difference: float
    """Largest difference of a number."""


@dataclass(frozen=True)
class Case:
    """What was found of one case."""

    name: str
    texts: int
    bidirectional: Near
    causal: Near
    matches: Match
    """What it is near to; "either": its texts cannot tell."""


@dataclass(frozen=True)
class Verdict:
    """What an engine's vectors are."""

    engine: str
    against: str
    matches: Literal["bidirectional", "causal", "neither"]
    cases: tuple[Case, ...]
    expected: Direction = "bidirectional"
    """The direction of the folder's encoder."""
    faults: tuple[str, ...] = ()
    """What else is wrong: pooling, a dropped prompt, the length of the vectors."""
    notes: tuple[str, ...] = ()
    """What could not be compared, or differs harmlessly."""
    allowed: str = ""
    """What counted as near."""

    @property
    def right(self) -> bool:
        """Whether the engine gives the folder's vectors."""
        return self.matches == self.expected and not self.faults

    def require(self) -> None:
        """Nothing, or VerificationError with the sentence."""
        if not self.right:
            raise VerificationError(self.sentence())

    def sentence(self) -> str:
        """What was found, for people."""
        return ". ".join([self._found(), *self.faults]) + "."

    def as_json(self) -> dict[str, Any]:
        """For programs: the fields, and `right` and `sentence`."""
        return {**asdict(self), "right": self.right, "sentence": self.sentence()}

    def _found(self) -> str:
        if self.matches == "neither":
            worst = next((case for case in self.cases if case.matches not in (self.expected, "either")), self.cases[0])
            two_way, one_way = worst.bidirectional, worst.causal
            return (
                f'{self.engine} matches neither reference of {self.against}: in "{worst.name}" the lowest cosine is '
                f"{two_way.cosine:.6f} to the bidirectional vectors (largest difference {two_way.difference:.1e}) and "
                f"{one_way.cosine:.6f} to the causal ones ({one_way.difference:.1e}); {self.allowed}"
            )
        near = [getattr(case, self.matches) for case in self.cases]
        other = OTHER[self.matches]
        far = min(getattr(case, other).cosine for case in self.cases)
        said = (
            f"{self.engine} matches the {self.matches} reference of {self.against} (largest difference "
            f"{max(found.difference for found in near):.1e}, lowest cosine {min(found.cosine for found in near):.6f}; "
            f"to the {other} one {far:.6f} at the lowest)"
        )
        return said if self.matches == self.expected else f"{said}, but the folder's encoder is {self.expected}"
