"""Every process holds a part of optimiser, gradients and weights: DeepSpeed's ZeRO 1, 2 and 3."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bothways.encoder import Encoder
from bothways.errors import ConfigError, TrainingError
from bothways.training.precision import WorkingWeights, kept_in_float32
from bothways.training.processes import Place, together
from bothways.training.settings import Training
from bothways.training.sharded import Whole, copied
from bothways.training.sharing import Result, count_of, optimiser_of
from bothways.training.zero_config import FSDP, engine_config


class ZeroShards:
    """DeepSpeed sums gradients in backward passes or in the step, clips them, steps, and sends the weights round.

    The masters are its flat float32 parts, which no name of a weight fits. It forgets no gradient but in a step.
    """

    sharded = True

    def __init__(self, whole: Whole, place: Place, engine: Any, optimiser: torch.optim.AdamW, count: int) -> None:
        self.whole, self.place, self.engine, self.optimiser, self.count = whole, place, engine, optimiser, count
        self.weights = {name: weight for name, weight in whole.named_parameters() if weight.requires_grad}
        self._whole_weights = engine.zero_optimization_stage() < 3
        parts = (
            [part for group in optimiser.param_groups for part in group["params"]]
            if self._whole_weights
            else engine.optimizer.fp32_partitioned_groups_flat
        )
        # Checkpoints take tensors of one name on two processes for copies of one.
        self.masters = {f"process {place.rank} part {number}": part for number, part in enumerate(parts)}
        self._under_way = False

    def call(self, compute: Callable[[], Result]) -> Result:
        """`compute()` as the forward pass of DeepSpeed's module."""
        result: Result
        self._under_way = True
        with together():
            # ZeRO 3 looks for tensors in what comes back, and stumbles over None and numbers, but not in tuples.
            [result] = self.engine(lambda: (compute(),))
        self._under_way = isinstance(result, Tensor) and result.requires_grad
        return result

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a part's loss."""
        self._under_way = True
        # DeepSpeed takes the mean, but the losses are shares of one.
        with together():
            self.engine.backward(loss * self.place.processes, scale_wrt_gas=False)

    def settle(self, signals: Float[Tensor, " signals"]) -> Float[Tensor, " signals"]:
        """Sum the signals; gradients are DeepSpeed's business."""
        with together():
            torch.distributed.all_reduce(signals)
        return signals

    def step(self, rate: float) -> float:
        """One step of this process's parts, from which all get their weights."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        with together():
            self.engine.step()
        self._under_way = False
        norm = float(self.engine.get_global_grad_norm())
        # Where it skipped the step, it says so by an infinite or a negative length.
        return norm if norm >= 0 else math.nan

    def drop(self) -> None:
        """Nothing after a step. Raises TrainingError within one: half a gradient stays in DeepSpeed."""
        if self._under_way:
            raise TrainingError(
                f"process {self.place.rank} is out of memory, and under DeepSpeed a step cannot be taken again. Start "
                'again with a smaller tokens_per_batch, or gradient_checkpointing="on".'
            )

    @torch.no_grad()
    def publish(self) -> None:
        """Compute with what has been put into the masters."""
        import deepspeed
        from deepspeed.utils import safe_get_full_fp32_param

        with together():
            if self._whole_weights:
                self.engine.optimizer.update_lp_params()
                return
            for weight in self.weights.values():
                value = safe_get_full_fp32_param(weight)
                with deepspeed.zero.GatheredParameters([weight], modifier_rank=0):
                    weight.copy_(value)

    @torch.no_grad()
    def gather(self, weights: WorkingWeights) -> None:
        """Put what was trained into the masters of the weights of which a copy was shared."""
        from deepspeed.utils import safe_get_full_fp32_param

        for name, weight in self.weights.items():
            with together():
                full = safe_get_full_fp32_param(weight)
            weights.masters[name].copy_(full)


@contextmanager
def zero_shards(
    encoder: Encoder,
    weights: WorkingWeights,
    place: Place,
    settings: Training,
    accelerator: Any,
    dtype: torch.dtype,
) -> Iterator[ZeroShards]:
    """The encoder computes with a copy of itself that DeepSpeed shares; at the end the trained weights are gathered.

    `accelerator` has the DeepSpeed plugin with what the launch configuration says. Raises ConfigError for a model with
    weights that must not be computed with in `dtype`.
    """
    import deepspeed
    from deepspeed.utils import logger

    config = engine_config(accelerator.state.deepspeed_plugin.deepspeed_config, settings.max_grad_norm, dtype)
    logger.setLevel(logging.WARNING)
    with copied(encoder) as whole:
        _check_dtype(whole, dtype)
        trained = {name: weight for name, weight in whole.named_parameters() if weight.requires_grad}
        count, optimiser = count_of(trained), optimiser_of(trained, settings.weight_decay)
        with together():
            engine, *_ = deepspeed.initialize(model=whole, optimizer=optimiser, config=config, dist_init_required=False)
        try:
            whole.train()
            share = ZeroShards(whole, place, engine, optimiser, count)
            yield share
            share.gather(weights)
        finally:
            engine.destroy()


def _check_dtype(whole: nn.Module, dtype: torch.dtype) -> None:
    parts = kept_in_float32(whole)
    kept = [name for name, _ in whole.named_parameters() if any(part in name for part in parts)]
    if kept and dtype != torch.float32:
        raise ConfigError(
            f'precision="bf16" under DeepSpeed: {kept[0]} computes in float32 alone, and weights of two formats '
            f'were never tried here. Use precision="fp32", or do without: {FSDP}.'
        )
