"""Every process holds a part of each weight: FSDP 2, `torch.distributed.fsdp.fully_shard`, as accelerate sets it up."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bothways.encoder import Encoder
from bothways.errors import TrainingError
from bothways.packing import packing_of_copy
from bothways.training.precision import WorkingWeights
from bothways.training.processes import Place, is_lost, together
from bothways.training.settings import Training
from bothways.training.sharing import Result, clipped_step, count_of, optimiser_of


class Whole(nn.Module):
    """All of an encoder as one module, whose forward pass is whatever is computed with it: what shares it gets to see.

    The trunk is not the whole: the head shares its weights, and must be gathered with them.
    """

    def __init__(self, model: nn.Module, head: nn.Module | None) -> None:
        super().__init__()
        self.model, self.head = model, head
        self._no_split_modules = getattr(model, "_no_split_modules", None)

    def forward(self, compute: Callable[[], Any]) -> Any:
        return compute()


class Shards:
    """FSDP sums gradients in every backward pass, so that every process must make the same number of them."""

    sharded = True

    def __init__(self, whole: Whole, place: Place, settings: Training) -> None:
        self.whole, self.place = whole, place
        self.masters = {name: weight for name, weight in whole.named_parameters() if weight.requires_grad}
        self.count = count_of(self.masters)
        self.optimiser = optimiser_of(self.masters, settings.weight_decay)
        self._longest = settings.max_grad_norm

    def call(self, compute: Callable[[], Result]) -> Result:
        """`compute()` as the forward pass of the sharded module."""
        with together():
            result: Result = self.whole(compute)
        if not isinstance(result, Tensor) or not result.requires_grad:
            # No backward pass will do it, and what is gathered now would be stale after the next step.
            self.whole.reshard()  # type: ignore[operator]
        return result

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a part's loss, summed over the processes."""
        # FSDP takes the mean, but the losses are shares of one.
        with together():
            (loss * self.place.processes).backward()

    def settle(self, signals: Float[Tensor, " signals"]) -> Float[Tensor, " signals"]:
        """Sum the signals; the gradients are summed already."""
        with together():
            torch.distributed.all_reduce(signals)
        return signals

    def step(self, rate: float) -> float:
        """One step of this process's parts."""
        norm = clipped_step(self.masters, self.optimiser, self._longest, rate)
        self.drop()
        return norm

    def drop(self) -> None:
        """Forget the gradients."""
        for master in self.masters.values():
            master.grad = None

    def publish(self) -> None:
        """Nothing: the optimiser works on the weights themselves."""


@contextmanager
def shards(
    encoder: Encoder,
    weights: WorkingWeights,
    place: Place,
    settings: Training,
    accelerator: Any,
    dtype: torch.dtype,
) -> Iterator[Shards]:
    """The encoder computes with a sharded copy of itself; at the end the trained weights are gathered into it.

    `accelerator` has the FSDP plugin with what the launch configuration says.
    """
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model
    from torch.distributed.fsdp import MixedPrecisionPolicy

    plugin = accelerator.state.fsdp_plugin
    plugin.cpu_ram_efficient_loading = False
    plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    with copied(encoder) as whole:
        fsdp2_prepare_model(accelerator, whole)
        whole.train()
        share = Shards(whole, place, settings)
        yield share
        _gather(share, weights)


@contextmanager
def copied(encoder: Encoder) -> Iterator[Whole]:
    """Within it the encoder computes with a copy of itself, on which whatever shares it may leave what it likes.

    The encoder's own weights wait meanwhile where they are (on the CPU).
    """
    model, head = encoder.model, encoder.head
    whole = copy.deepcopy(Whole(model, head))
    encoder.model, encoder.head = whole.model, whole.head  # type: ignore[assignment]
    try:
        with packing_of_copy(model, encoder.model):
            yield whole
    finally:
        encoder.model, encoder.head = model, head


@torch.no_grad()
def _gather(share: Shards, weights: WorkingWeights) -> None:
    for name, master in share.masters.items():
        with together():
            full: Tensor = master.full_tensor()  # type: ignore[attr-defined]
        weights.masters[name].copy_(full)


def ready(masters: Mapping[str, nn.Parameter], optimiser: torch.optim.AdamW) -> None:
    """Give the optimiser the state it has before its first step, so that there are tensors to load into."""
    for master in masters.values():
        if not optimiser.state[master]:
            optimiser.state[master] = {
                "step": torch.zeros((), dtype=torch.float32, device=master.device),
                "exp_avg": torch.zeros_like(master),
                "exp_avg_sq": torch.zeros_like(master),
            }


def write_shards(tensors: dict[str, dict[str, Tensor]], folder: Path) -> None:
    """Each process writes its parts, with torch.distributed.checkpoint."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_saver import save

    try:
        save(tensors, checkpoint_id=str(folder))
    except CheckpointException as problem:  # no Exception, and around what happened on each process
        causes = [failure[0] for failure in problem.failures.values()]
        raise next((cause for cause in causes if isinstance(cause, OSError)), RuntimeError(str(causes))) from None


def read_shards(tensors: dict[str, dict[str, Tensor]], folder: Path) -> None:
    """Each process reads its parts into the tensors. Raises TrainingError for a damaged file."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_loader import load

    try:
        load(tensors, checkpoint_id=str(folder))
    except (Exception, CheckpointException) as problem:  # which is none, and what a broken file makes of unpickling
        if is_lost(problem):
            raise
        raise TrainingError(
            f"{folder} cannot be read: {str(problem).splitlines()[0]}. Delete it to go on from the one before."
        ) from None
