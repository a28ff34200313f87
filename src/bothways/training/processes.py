"""The processes of one training run: which of them this is, what they wait for, and what happens when one dies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch

from bothways import hardware
from bothways.errors import ConfigError, TrainingError
from bothways.training.zero_config import require_deepspeed, sharing_of

Value = TypeVar("Value")

WAIT = timedelta(hours=1)
"""How long a process waits for the others before it gives up: longer than the first one takes to write or to score."""
LOST = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "timed out waiting")
"""Parts of what a collective says when it fails."""


@dataclass(frozen=True)
class Place:
    """Which of how many processes this is, and whether all have to make the same number of forward passes."""

    rank: int
    processes: int
    in_step: bool = False

    @property
    def main(self) -> bool:
        """Whether it is the process that writes."""
        return self.rank == 0


def launched() -> bool:
    """Whether a launcher (torchrun, accelerate launch) started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def begin(**options: Any) -> Any:
    """The accelerator of this process (accelerate.Accelerator); with several, they have found one another afterwards.

    It places nothing and casts nothing: that is the stages' own business. Raises ConfigError for a launch that would
    not do what it says.
    """
    from accelerate import Accelerator, InitProcessGroupKwargs

    # Every process reads the weights itself: each measures what it has loaded.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    # Without this accelerate takes processes without a GPU for so many strangers.
    cpu = launched() and hardware.choose_device().value.type == "cpu"
    deepspeed = _on("ACCELERATE_USE_DEEPSPEED")
    if (cpu and _on("ACCELERATE_USE_FSDP")) or (
        _on("ACCELERATE_USE_CPU") and (deepspeed or _on("ACCELERATE_USE_FSDP"))
    ):
        raise ConfigError(
            f"the launch configuration asks for {'DeepSpeed' if deepspeed else 'FSDP'} on CPU processes, where "
            "accelerate would train replicas without a word. Use GPUs, or a configuration without it: accelerate "
            "launch --cpu --num_processes N, or torchrun."
        )
    group: dict[str, Any] = {"timeout": WAIT}
    if deepspeed:
        require_deepspeed()
        if cpu:
            # DeepSpeed does run there, if accelerate is not told, and is told how processes talk.
            cpu, group = False, {**group, "backend": "gloo"}
    accelerator = Accelerator(
        device_placement=False,
        mixed_precision="no",
        cpu=cpu or None,
        kwargs_handlers=[InitProcessGroupKwargs(**group)],
        **options,
    )
    kind = str(accelerator.distributed_type).rpartition(".")[2]
    if kind == "DEEPSPEED":
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        sharing_of(accelerator.state.deepspeed_plugin.deepspeed_config)
        # With ZeRO 3 transformers would load weights in parts: what is shared is a copy of a whole encoder.
        unset_hf_deepspeed_config()
    elif kind not in ("NO", "MULTI_CPU", "MULTI_GPU", "FSDP"):
        raise ConfigError(
            f"the launch configuration asks for {kind}, which this version does not train with. "
            "Use replicas (the default of accelerate launch and torchrun), FSDP 2 (fsdp_version: 2) or DeepSpeed."
        )
    if kind == "FSDP" and not accelerator.is_fsdp2:
        raise ConfigError("the launch configuration asks for FSDP 1. Write fsdp_version: 2 in it.")
    return accelerator


def place() -> Place:
    """Where this process stands. Starts the processes' talk with one another if a launcher started several."""
    if not launched():
        return Place(0, 1)
    accelerator = begin()
    return Place(accelerator.process_index, accelerator.num_processes)


def wait(where: Place) -> None:
    """Until every process is here. Raises TrainingError if one of them died."""
    if where.processes > 1:
        with together():
            torch.distributed.barrier()


def gathered(where: Place, value: Value) -> list[Value]:
    """The value of every process. Raises TrainingError if one of them died."""
    if where.processes == 1:
        return [value]
    found: list[Any] = [None] * where.processes
    with together():
        torch.distributed.all_gather_object(found, value)
    return found


@contextmanager
def together() -> Iterator[None]:
    """Around a collective: what it raises where another process is gone becomes a TrainingError."""
    try:
        yield
    except RuntimeError as problem:
        if not is_lost(problem):
            raise
        heard = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise TrainingError(
            "another process of this run has died or no longer answers, so that this one stops too. Its own message "
            "stands above, or in the launcher's report. Start the run again with --resume: it goes on from the last "
            f"checkpoint. What was heard here: {heard}"
        ) from None


def failure_of(rank: int) -> TrainingError:
    """What this process raises where another one has said that it failed."""
    return TrainingError(
        f"process {rank} of this run has failed, so that this one stops too. Its own message says why; start the run "
        "again with --resume: it goes on from the last checkpoint."
    )


def is_lost(problem: BaseException) -> bool:
    """Whether it is what a collective raises when another process is gone."""
    if isinstance(problem, torch.distributed.DistBackendError):
        return True
    return isinstance(problem, RuntimeError) and any(part in str(problem).lower() for part in LOST)


def end() -> None:
    """Say good-bye to the other processes, where there are some and all went well."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _on(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1", "yes")
