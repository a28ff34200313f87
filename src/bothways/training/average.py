"""The exponential average of the weights that are trained."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

YOUNG = 10
"""After n steps no more than (1 + n) / (10 + n) of the average is kept, so that it forgets where the run began."""


class Average:
    """Float32 copies of `masters` that follow them: average = decay * average + (1 - decay) * master, once a step.

    Source of the smaller decay at the start: tf.train.ExponentialMovingAverage(num_updates).
    """

    def __init__(self, masters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.masters, self.decay = masters, decay
        self.values: dict[str, Tensor] = {name: master.detach().clone() for name, master in masters.items()}

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Take in the weights after the step with this number, counted from 0."""
        kept = min(self.decay, (1 + step) / (YOUNG + step))
        for name, value in self.values.items():
            value.lerp_(self.masters[name].detach(), 1 - kept)

    @torch.no_grad()
    def adopt(self) -> None:
        """Make the average what was trained."""
        for name, value in self.values.items():
            self.masters[name].copy_(value)
