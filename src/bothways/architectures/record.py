"""What was found of an architecture: its category, an answer for each attention backend, the checks that followed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

Category = Literal[
    "attention",
    "hybrid",
    "recurrent",
    "already bidirectional",
    "multimodal text tower",
    "encoder-decoder half",
    "drafter",
    "cannot be built here",
]

PADDING_LIMIT = 1e-5
"""Largest relative change of a text's float32 hidden states that padding, or texts packed beside it, may cause."""
AGAIN_LIMIT = 1e-6
"""Largest relative change that saving, loading and converting again may cause, with an adapter or without."""
CHECKS = {"gradients": "gradients", "saved": "saving and loading", "adapted": "saving and loading an adapter"}


@dataclass(frozen=True)
class Answer:
    """What `make_bidirectional` said under one attention backend."""

    backend: str
    refusal: str = ""
    """Why it would not, in its own words; empty where it did."""
    error: str = ""
    """What went wrong that nobody named: a defect."""
    padding: float | None = None
    """Relative change of a text's hidden states when it stands in a right-padded batch."""
    packed: float | None = None
    """The same when it stands in one row with others, none of which it may see; None where texts are not packed."""
    unpacked: str = ""
    """Why texts are not packed."""

    @property
    def bidirectional(self) -> bool:
        return not self.refusal and not self.error

    @property
    def failures(self) -> Iterator[str]:
        """Checks that failed after it said yes, in words."""
        if self.error:
            yield f"{self.backend}: {self.error}"
        elif self.bidirectional and not _within(self.padding, PADDING_LIMIT):
            yield f"{self.backend}: padding changes the hidden states by {_shown(self.padding)}"
        elif self.packed is not None and not _within(self.packed, PADDING_LIMIT):
            yield f"{self.backend}: packing changes the hidden states by {_shown(self.packed)}"


@dataclass(frozen=True)
class Checks:
    """What a model must still do once it is converted, under one backend."""

    backend: str
    saved: float | None = None
    """Relative change of the hidden states after saving, loading and converting again."""
    adapted: float | None = None
    """The same with a LoRA adapter on every linear layer, saved and loaded beside it."""
    unreached: tuple[str, ...] = ()
    """Mixing sub-modules with parameters of which none got a gradient."""
    errors: Mapping[str, str] = field(default_factory=dict)
    """Check -> what it raised; those after it were not made."""

    @property
    def failed(self) -> dict[str, str]:
        """Check -> what is wrong, in words."""
        found = dict(self.errors)
        if self.unreached:
            found["gradients"] = f"no gradient reaches {', '.join(self.unreached)}"
        for name, value in (("saved", self.saved), ("adapted", self.adapted)):
            if value is not None and not _within(value, AGAIN_LIMIT):
                found[name] = f"it changes the hidden states by {value:.1e}"
        return found


@dataclass(frozen=True)
class Architecture:
    """One entry of the mapping, as measured."""

    name: str
    model_class: str
    category: Category
    answers: tuple[Answer, ...] = ()
    """One for each backend that the architecture has; none if it cannot be built."""
    kinds: tuple[str, ...] = ()
    """Classes of the sub-modules that mix tokens."""
    treatments: tuple[str, ...] = ()
    """What was done to sub-modules, beyond the config's flag."""
    checks: Checks | None = None
    """None where no backend converts."""
    baseline: Checks | None = None
    """The same checks on the model as it came, made only where one failed: what fails there too is not ours."""
    unbuilt: str = ""
    """Why it cannot be built here."""
    seconds: float = 0.0

    @property
    def bidirectional(self) -> bool:
        """Under one backend at least."""
        return any(answer.bidirectional for answer in self.answers)

    @property
    def failures(self) -> tuple[str, ...]:
        """What is wrong although nothing was refused."""
        found = [failure for answer in self.answers for failure in answer.failures]
        failed = {} if self.checks is None else self.checks.failed
        return (*found, *(f"{CHECKS[name]}: {what}" for name, what in failed.items() if name not in self._inherited))

    @property
    def notes(self) -> tuple[str, ...]:
        """What fails in the model as it came, too."""
        return tuple(f"{CHECKS[name]}, converted or not: {what}" for name, what in self._inherited.items())

    @property
    def _inherited(self) -> dict[str, str]:
        return {} if self.baseline is None else self.baseline.failed

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it was refused or not built, each once, with the backends that gave it."""
        if self.unbuilt:
            return (self.unbuilt,)
        said: dict[str, list[str]] = {}
        for answer in self.answers:
            if answer.refusal:
                reason = answer.refusal.replace(f' under attn_implementation="{answer.backend}"', "")
                said.setdefault(reason, []).append(answer.backend)
        everywhere = len(self.answers)
        return tuple(
            reason if len(backends) == everywhere else f"{', '.join(backends)}: {reason}"
            for reason, backends in said.items()
        )


def _within(value: float | None, limit: float) -> bool:
    # Not a number is not within.
    return value is not None and value <= limit


def _shown(value: float | None) -> str:
    return "an unknown amount" if value is None else f"{value:.1e}"
