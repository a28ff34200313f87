"""What the processes tell one another in a step, in the same collective as the gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bothways.training.processes import Place, failure_of


@dataclass
class Signals:
    """Of one process; after `agree`, of all."""

    place: Place
    loss: float = 0.0
    tokens: int = 0
    stop: bool = False
    micro_batch: int = 0
    checkpointing: bool = False
    failure: Exception | None = None

    def agree(self, total: Callable[[Tensor], Tensor], device: torch.device) -> Signals:
        """Sums, the smallest micro-batch, and what any of them wants. `total` sums a vector over the processes.

        Raises TrainingError if another process has failed.
        """
        if self.place.processes == 1:
            return self
        count, own = self.place.processes, self.place.rank
        micro_batches, failed = [0.0] * count, [0.0] * count
        micro_batches[own], failed[own] = float(self.micro_batch), float(self.failure is not None)
        plain = [self.loss, float(self.tokens), float(self.stop), float(self.checkpointing), *micro_batches, *failed]
        found = total(torch.tensor(plain, device=device)).tolist()
        loss, tokens, stop, checkpointing, *each = found
        others = [rank for rank in range(count) if each[count + rank] and rank != own]
        if others and self.failure is None:
            raise failure_of(others[0])
        return Signals(self.place, loss, int(tokens), stop > 0, int(min(each[:count])), checkpointing > 0)
