"""How the processes of a run share its weights and gradients. Here: each has all weights, gradients are summed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bothways.training.average import Average
from bothways.training.precision import WorkingWeights
from bothways.training.processes import Place, together
from bothways.training.settings import Training

Result = TypeVar("Result")

BUCKET = 2**26
"""Numbers that are summed over the processes at once: 256 MiB of float32."""


@runtime_checkable
class Share(Protocol):
    """What the loop needs of the weights, whoever holds which part of them."""

    place: Place
    masters: dict[str, nn.Parameter]
    """What the optimiser trains, float32, by name; of a sharded weight this process's part."""
    sharded: bool
    count: int
    """Weights that are trained, on all processes together."""
    optimiser: torch.optim.AdamW

    def call(self, compute: Callable[[], Result]) -> Result:
        """`compute()`, with the weights ready for forward passes in it."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a part's loss."""

    def settle(self, signals: Float[Tensor, " signals"]) -> Float[Tensor, " signals"]:
        """Sum the signals, and the gradients where that is still to be done, over all processes."""

    def step(self, rate: float) -> float:
        """Clip the gradient, take one step of the optimiser, forget the gradient. Returns its length before.

        Where that is not finite, no weight is changed.
        """

    def drop(self) -> None:
        """Forget the gradients."""

    def publish(self) -> None:
        """Compute with what has been put into the masters."""


class Replicas:
    """Every process has all weights. Gradients are summed once a step, in flat buckets, together with the signals.

    What each process adds are shares of one global loss, so that the sum is the gradient of the global batch.
    """

    sharded = False

    def __init__(self, weights: WorkingWeights, place: Place, settings: Training) -> None:
        self.weights, self.place, self.masters = weights, place, weights.masters
        self.count = count_of(self.masters)
        self.optimiser = optimiser_of(self.masters, settings.weight_decay)
        self._longest = settings.max_grad_norm

    def call(self, compute: Callable[[], Result]) -> Result:
        """`compute()`: the weights are always ready."""
        return compute()

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a part's loss to the masters."""
        loss.backward()
        self.weights.collect()

    def settle(self, signals: Float[Tensor, " signals"]) -> Float[Tensor, " signals"]:
        """Sum signals and gradients over all processes; a weight that none has a gradient for keeps none."""
        if self.place.processes == 1:
            return signals
        masters = list(self.masters.values())
        present = torch.tensor([float(master.grad is not None) for master in masters], device=signals.device)
        head = torch.cat([signals, present])
        for number, bucket in enumerate(_buckets(masters)):
            pieces = [torch.zeros_like(item) if item.grad is None else item.grad for item in bucket]
            flat = torch.cat([*([head] if number == 0 else []), *(piece.flatten() for piece in pieces)])
            del pieces
            with together():
                torch.distributed.all_reduce(flat)
            if number == 0:
                head, flat = flat[: len(head)], flat[len(head) :]
            for master, piece in zip(bucket, flat.split([item.numel() for item in bucket]), strict=True):
                master.grad = piece.view_as(master)
        for master, count in zip(masters, head[len(signals) :].tolist(), strict=True):
            if not count:
                master.grad = None
        return head[: len(signals)]

    def step(self, rate: float) -> float:
        """One step of the masters, which the weights follow."""
        norm = clipped_step(self.masters, self.optimiser, self._longest, rate)
        self.drop()
        self.publish()
        return norm

    def drop(self) -> None:
        """Forget the gradients of the masters, and those of a part that failed."""
        self.weights.drop()

    def publish(self) -> None:
        """Copy the masters into the weights that compute."""
        self.weights.publish()


def _buckets(masters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    bucket: list[nn.Parameter] = []
    for master in masters:
        if bucket and sum(item.numel() for item in bucket) + master.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(master)
    yield bucket


def clip(masters: Mapping[str, nn.Parameter], longest: float) -> float:
    """Scale the gradient down to the length `longest`; 0: never. Returns its length before that."""
    trained = [master for master in masters.values() if master.grad is not None]
    norm = torch.nn.utils.get_total_norm([master.grad for master in trained if master.grad is not None])
    # Under sharding the length is one of all parts.
    whole = getattr(norm, "full_tensor", None)
    norm = norm if whole is None else whole()
    if longest:
        torch.nn.utils.clip_grads_with_norm_(trained, longest, norm)
    return float(norm) if trained else math.nan


def clipped_step(
    masters: Mapping[str, nn.Parameter], optimiser: torch.optim.AdamW, longest: float, rate: float
) -> float:
    """Clip the gradient and step at this learning rate, unless its length, which is returned, is not finite."""
    norm = clip(masters, longest)
    if math.isfinite(norm):
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.step()
    return norm


def count_of(masters: Mapping[str, nn.Parameter]) -> int:
    """How many numbers there are in the weights."""
    return sum(master.numel() for master in masters.values())


def optimiser_of(masters: Mapping[str, nn.Parameter], weight_decay: float) -> torch.optim.AdamW:
    """AdamW, fused, with weight decay on matrices only."""
    values = list(masters.values())
    groups = [
        {"params": [master for master in values if master.ndim >= 2], "weight_decay": weight_decay},
        {"params": [master for master in values if master.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], fused=True)


def tensors_of(
    masters: Mapping[str, nn.Parameter], optimiser: torch.optim.AdamW, average: Average | None
) -> dict[str, dict[str, Tensor]]:
    """Everything of a run that is a tensor, by kind and by name of the weight: the tensors themselves."""
    found: dict[str, dict[str, Tensor]] = {"weights": {name: master.detach() for name, master in masters.items()}}
    for name, master in masters.items():
        state: Mapping[str, Any] = optimiser.state.get(master, {})
        for kind, value in state.items():
            found.setdefault(kind, {})[name] = value
    if average is not None:
        found["average"] = average.values
    return found


@torch.no_grad()
def take_up(
    saved: Mapping[str, Mapping[str, Tensor]],
    masters: Mapping[str, nn.Parameter],
    optimiser: torch.optim.AdamW,
    average: Average | None,
) -> None:
    """Put back what `tensors_of` gave."""
    for name, master in masters.items():
        master.copy_(saved["weights"][name])
        state = {
            kind: saved[kind][name] for kind in saved if kind not in ("weights", "average") and name in saved[kind]
        }
        if state:
            # The count of steps stays where it is: AdamW keeps it on the device of the weight or on the CPU.
            optimiser.state[master] = {kind: value.to(master.device).clone() for kind, value in state.items()}
    if average is not None:
        for name, value in average.values.items():
            value.copy_(saved["average"][name])
