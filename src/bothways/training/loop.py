"""The loop that every stage shares. What a stage teaches is a `Task`; everything else about training starts here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from bothways import hardware
from bothways.bidirectional.probe import probe
from bothways.encoder import Encoder
from bothways.errors import ConfigError
from bothways.training import checkpoint
from bothways.training.choices import Choices, choose_precision, choose_tokens, chosen_packing, stored
from bothways.training.compiled import compiled
from bothways.training.kernel import training_attention
from bothways.training.mask_row import NEW
from bothways.training.memory import Memory
from bothways.training.processes import Place, begin
from bothways.training.progress import Show, progress
from bothways.training.randomness import borrowed_generators, seed_everything
from bothways.training.run import Run, Setting, State
from bothways.training.settings import MNTP, Supervised, Training
from bothways.training.sharded import shards
from bothways.training.sharing import Replicas, Share
from bothways.training.task import Cut, Part, Task
from bothways.training.trackers import Trackers, options
from bothways.training.tuning import tuned
from bothways.training.zero import zero_shards

__all__ = ["LAST_STEPS", "NOT_IDENTITY", "Cut", "Part", "Place", "Task", "train"]

NOT_IDENTITY = ("save_every", "evaluate_every", "gradient_checkpointing", "trackers", "log_dir")
"""Settings that may change when a run is resumed, because no number depends on them."""
LAST_STEPS = 20
"""The final loss is the mean of so many steps."""


def train(
    task: Task,
    settings: Training,
    *,
    checkpoint_dir: str | Path | None = None,
    resume: bool = False,
    show_progress: bool = True,
) -> Encoder:
    """Train `task.encoder` in place, add the stage to its record, and return it; on every process of a launch.

    With a `checkpoint_dir`, Ctrl-C or SIGTERM finishes the step, writes a checkpoint and raises KeyboardInterrupt;
    `resume` goes on from the last checkpoint there and gives, on the same device and as many processes, what the
    uninterrupted run would have given.

    Raises TrainingError for a loss or gradient that is not finite, for a checkpoint of another run, where the memory
    does not suffice and where another process has died.
    """
    folder = None if checkpoint_dir is None else Path(checkpoint_dir)
    with borrowed_generators():
        seed_everything(settings.seed)
        accelerator = begin(**options(settings, folder))
        in_step = str(accelerator.distributed_type).endswith(("FSDP", "DEEPSPEED"))
        place = Place(accelerator.process_index, accelerator.num_processes, in_step)
        if place.processes > 1:
            task.encoder.to(accelerator.device)
        with progress(task.name, settings.steps, wanted=show_progress and place.main) as show:
            identity = _identity(task, settings, place, accelerator)
            saved = checkpoint.load(folder, identity, show.say) if resume and folder is not None else None
            with _set_up(task, settings, accelerator, place, show, stored(saved)) as (share, memory, choices):
                trackers = Trackers(accelerator, task.name, {**asdict(settings), **choices.plain()})
                run = Run(task, settings, Setting(share, memory, show, trackers, folder, identity, choices))
                try:
                    run.start(saved)
                    # Weights and moments of the whole model, which would stay in memory to the end.
                    saved = None
                    run.go()
                    resolved = {**asdict(settings), **run.choices.plain()}
                finally:
                    trackers.close()
        _finish(task.encoder, task, resolved, run.state)
    return task.encoder


@contextmanager
def _set_up(
    task: Task, settings: Training, accelerator: Any, place: Place, show: Show, before: Choices | None
) -> Iterator[tuple[Share, Memory, Choices]]:
    """Choose what the settings leave open, say so, and make the encoder ready to be trained; undone at the end."""
    encoder = task.encoder
    precision = choose_precision(settings, before, encoder.device)
    micro_batch = choose_tokens(settings, before, encoder.device, task.longest)
    with (
        training_attention(encoder, task.longest, None if before is None else before.attn_implementation) as attention,
        chosen_packing(encoder.model, before, precision.value) as packed,
        _shared(encoder, settings, place, accelerator, precision.value) as share,
        compiled(encoder, wanted=settings.compile),
    ):
        show.say(f"{task.order.count:,} items, {share.count:,} weights to train, {precision.value} ({precision.why})")
        show.say(f"{attention.value} attention ({attention.why}); {packed.why}")
        show.say(f"{micro_batch.value:,} tokens at once ({micro_batch.why})")
        if place.processes > 1:
            show.say(f"{place.processes} processes, each with {'a part of' if place.in_step else 'all'} weights")
        memory = Memory(
            encoder, packed, task.longest, micro_batch.value, settings.gradient_checkpointing, show.say, place
        )
        name = str(precision.value).removeprefix("torch.")
        try:
            yield (
                share,
                memory,
                Choices(attention.value, packed.packed, name, micro_batch.value, memory.checkpointing),
            )
        finally:
            memory.release()


@contextmanager
def _shared(
    encoder: Encoder, settings: Training, place: Place, accelerator: Any, dtype: torch.dtype
) -> Iterator[Share]:
    """What is trained, ready to be trained, on every process as the launch says."""
    if not place.in_step:
        with tuned(encoder, settings, dtype) as weights:
            yield Replicas(weights, place, settings)
        return
    zero = _is_zero(accelerator)
    kind = "DeepSpeed" if zero else "FSDP"
    replicas = f"replicas (torchrun without a configuration of {kind})"
    if settings.tune == "qlora":
        raise ConfigError(
            f'{type(settings).__name__}(tune="qlora") under {kind}: layers of 4 bits are not sharded. '
            f'Use tune="lora", or {replicas}.'
        )
    if isinstance(settings, MNTP) and settings.mask_token == NEW and settings.tune != "full":
        raise ConfigError(
            f'MNTP(mask_token="new", tune="{settings.tune}") under {kind}: the one row that is trained is not '
            f'sharded. Use tune="full", or {replicas}.'
        )
    if isinstance(settings, Supervised) and settings.learn_temperature:
        raise ConfigError(
            f"Supervised(learn_temperature=True) under {kind}: the one number is not sharded. Leave it out, or use "
            f"{replicas}."
        )
    if zero and settings.compile:
        raise ConfigError(
            f"{type(settings).__name__}(compile=True) under DeepSpeed: never tried here. Leave it out, or use "
            f"{replicas}."
        )
    device = encoder.device
    encoder.to("cpu")
    try:
        # Both keep what is trained in float32 and cast by themselves.
        with (
            tuned(encoder, settings, torch.float32) as weights,
            (zero_shards if zero else shards)(encoder, weights, place, settings, accelerator, dtype) as share,
        ):
            yield share
    finally:
        encoder.to(device)


def _identity(task: Task, settings: Training, place: Place, accelerator: Any) -> dict[str, Any]:
    # Parts of one stage of ZeRO fit no other.
    zero = {"ZeRO": accelerator.state.deepspeed_plugin.zero_stage} if _is_zero(accelerator) else {}
    return checkpoint.identity(
        {name: value for name, value in asdict(settings).items() if name not in NOT_IDENTITY},
        stage=task.name,
        **{f"data {name}": value for name, value in task.facts["data"].items()},
        weights=checkpoint.fingerprint(task.encoder),
        processes=place.processes,
        sharded=place.in_step,
        **zero,
    )


def _is_zero(accelerator: Any) -> bool:
    return str(accelerator.distributed_type).endswith("DEEPSPEED")


def _finish(encoder: Encoder, task: Task, resolved: Mapping[str, Any], state: State) -> None:
    before = encoder.record.certificate
    certificate = probe(encoder.model, {} if before is None else {item.name: item.treatment for item in before.modules})
    if encoder.settings.direction == "bidirectional":
        certificate.require_bidirectional()
    else:
        certificate.require_causal()
    last = state.losses[-LAST_STEPS:]
    encoder.record = replace(encoder.record, certificate=certificate).add(
        task.name,
        settings=dict(resolved),
        **task.facts,
        loss=sum(last) / len(last),
        held_out={str(step): scores for step, scores in state.held_out.items()},
        seconds=round(state.seconds, 1),
        peak_memory_bytes=hardware.peak_memory_bytes(),
    )
