"""What a person may decide about a merge. Apart from the stage, so that the command line answers without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from bothways.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Merge:
    """How encoders become one (model soups, arXiv 2203.05482; task vectors, arXiv 2212.04089)."""

    method: Literal["linear", "slerp"] = "linear"
    """linear: the weighted mean of the weights, with a base that and its scale; slerp: along the arc between two, then
    on to the next. Encoders of one origin are nearly parallel, so that slerp wants the base to differ from linear."""
    weights: tuple[float, ...] = ()
    """How much each encoder counts, in their order; none: all the same. Divided by their sum, except by linear with a
    base, where 1 1 adds both differences to it in full, 0.5 0.5 is the mean, and below 0 takes away what was learnt."""
    t: float | None = None
    """Of two encoders, the second one's share, from 0 to 1: short for the weights 1 - t and t."""
    head: bool = True
    """Merge the language-model heads too, which MNTP needs; without, encoders that lack theirs can be merged."""

    def __post_init__(self) -> None:
        if not all(math.isfinite(weight) for weight in self.weights):
            raise ConfigError(f"{self._said()}: expected finite numbers.")
        if self.method == "slerp" and any(weight < 0 for weight in self.weights):
            raise ConfigError(f'{self._said()}: method="slerp" goes between encoders. Use weights from 0 on.')
        if self.t is not None and not 0 <= self.t <= 1:
            raise ConfigError(f"Merge(t={self.t:g}): expected 0 <= t <= 1.")
        if self.t is not None and self.weights:
            raise ConfigError(f"Merge(t={self.t:g}) says the same as weights={self._listed()}. Give one of them.")

    def shares(self, encoders: int, *, anchored: bool) -> tuple[float, ...]:
        """The number by which each of so many encoders counts; `anchored`: there is a base.

        Raises ConfigError if there are fewer than two, or the settings are for another number of them.
        """
        if encoders < 2:
            raise ConfigError(f"merge: {encoders} encoder{'' if encoders else 's'}, expected two or more.")
        if self.t is not None:
            if encoders != 2:
                raise ConfigError(f"Merge(t={self.t:g}): t is for two encoders, found {encoders}. Give weights.")
            return 1 - self.t, self.t
        if not self.weights:
            return (1 / encoders,) * encoders
        if len(self.weights) != encoders:
            raise ConfigError(f"{self._said()}: {encoders} encoders need as many weights. Give one for each.")
        if self.method == "linear" and anchored:
            return self.weights
        total = sum(self.weights)
        if total <= 0:
            raise ConfigError(f"{self._said()}: they sum to {total:g}, and are to be divided by that. Name a base too.")
        return tuple(weight / total for weight in self.weights)

    def _said(self) -> str:
        return f"Merge(weights={self._listed()})"

    def _listed(self) -> str:
        return f"({', '.join(f'{weight:g}' for weight in self.weights)})"
