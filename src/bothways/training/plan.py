"""What a stage will take before anything is loaded: weights, FLOPs, memory by part, the batch that fits, the time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedConfig

from bothways import hardware
from bothways.errors import ConfigError
from bothways.provenance import EncoderSettings
from bothways.training.choices import caches
from bothways.training.footprint import Footprint, UncountableError
from bothways.training.settings import MNTP, Contrastive, Distil, Supervised, Training
from bothways.training.skeleton import Making, Sizes, Skeleton, refuse_no_decoder
from bothways.training.target import Target

RUNTIME = {"cpu": 2**29, "other": 2**30}
"""Bytes before there is a model: Python with its libraries; on an accelerator the driver's context and workspaces."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one device at the moment when most is in use, by part."""

    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Pass:
    """How a stage cuts its batch: the choice that memory decides."""

    tokens_per_batch: int
    grad_cache: bool
    gradient_checkpointing: bool


@dataclass(frozen=True)
class StagePlan:
    """What one stage takes."""

    stage: str
    tune: str
    sizes: Sizes
    precision: str
    attention: str
    devices: int
    row_tokens: int
    """Tokens of a row: a block, or a text that is as long as may be read."""
    rows: int
    """Rows of one step, on all devices."""
    tokens_per_batch: int
    """As the recipe has it, or as it would be chosen."""
    as_set: Memory | None
    """With the recipe's own settings; None where it cannot be counted."""
    fitting: Pass | None
    """The largest passes that fit; None where none does, or where it cannot be counted."""
    fits: Memory | None
    flops_per_token: float | None
    """Forward and backward, by the fitting pass, or as set where none fits."""
    flops_per_step: float | None
    seconds_per_step: float | None
    seconds: float | None
    """Of all steps, without reading data and measuring."""
    advice: str
    notes: tuple[str, ...]


def plan_stage(
    stage: str, settings: Training, config: PreTrainedConfig, encoder: EncoderSettings, made: Making, target: Target
) -> StagePlan:
    """The plan of one stage for a base with this config, converted so. Nothing is downloaded, loaded or allocated.

    Every row counts as long as the stage reads; texts that are shorter take less. Raises ConversionError for what is
    no decoder, ConfigError for settings that do not fit the model.
    """
    refuse_no_decoder(config)
    return _Plan(stage, settings, Skeleton(config, encoder, made), target).result()


def row_tokens(settings: Training, encoder: EncoderSettings) -> int:
    """The longest row that a stage makes."""
    if isinstance(settings, MNTP) and settings.block_size is not None:
        return settings.block_size
    return settings.max_length or encoder.max_length


def rows_of(settings: Training) -> int:
    """Rows of one step: blocks or texts; or two views of each text; or queries, positives and hard negatives."""
    if isinstance(settings, Supervised):
        return settings.batch_size * (2 + settings.negatives)
    if isinstance(settings, Distil):
        return settings.batch_size * (2 if settings.contrastive else 1)
    return settings.batch_size * (2 if isinstance(settings, Contrastive) else 1)


class _Plan:
    """One stage of one model on one kind of device."""

    def __init__(self, stage: str, settings: Training, skeleton: Skeleton, target: Target) -> None:
        if isinstance(settings, MNTP) and skeleton.head is None:
            raise ConfigError("mntp predicts tokens with the language-model head, but there is none. Use head: true.")
        self.stage, self.settings, self.target = stage, settings, target
        self.notes = list(skeleton.notes)
        if settings.tune == "qlora":
            self.notes.append("the frozen layers count as they are; in 4 bits they take a quarter of bfloat16's memory")
        self.tokens = row_tokens(settings, skeleton.settings)
        self.rows = rows_of(settings)
        self.mine = math.ceil(self.rows / target.count)
        self.dtype = target.dtype(settings.precision)
        own = str(getattr(skeleton.model.config, "_attn_implementation", "eager"))
        self.attention = hardware.choose_training_attention(own, target.device, self.tokens).value
        if self.attention != own:
            skeleton.model.set_attn_implementation(self.attention)
        self.footprint = Footprint(skeleton, settings, self.dtype, target.device.type, self.mine, self.tokens)

    def result(self) -> StagePlan:
        try:
            as_set = self.memory(self.as_set)
            fitting = self.fitting()
            chosen = fitting or self.as_set
            flops = self.flops(chosen)
        except UncountableError as problem:
            return self._result(None, None, None, None, advice=str(problem))
        fits = None if fitting is None else self.memory(fitting)
        return self._result(as_set, fitting, fits, flops, advice=self.advice(as_set, fitting))

    def _result(
        self, as_set: Memory | None, fitting: Pass | None, fits: Memory | None, flops: float | None, *, advice: str
    ) -> StagePlan:
        seconds = None if flops is None else flops / (self.rate * self.target.share * self.target.count)
        return StagePlan(
            stage=self.stage,
            tune=self.settings.tune,
            sizes=self.footprint.sizes,
            precision=str(self.dtype).removeprefix("torch."),
            attention=self.attention,
            devices=self.target.count,
            row_tokens=self.tokens,
            rows=self.rows,
            tokens_per_batch=self.as_set.tokens_per_batch,
            as_set=as_set,
            fitting=fitting,
            fits=fits,
            flops_per_token=None if flops is None else flops / (self.rows * self.tokens),
            flops_per_step=flops,
            seconds_per_step=seconds,
            seconds=None if seconds is None else seconds * self.settings.steps,
            advice=advice,
            notes=tuple(self.notes),
        )

    @cached_property
    def rate(self) -> float:
        return self.target.rate(self.dtype)

    @property
    def as_set(self) -> Pass:
        cached = caches(self.settings)
        tokens = hardware.choose_tokens_per_batch(
            self.settings.tokens_per_batch, self.target.device, self.tokens, cached=cached
        ).value
        return Pass(tokens, cached, self.settings.gradient_checkpointing == "on" and self.footprint.can_checkpoint)

    def per_pass(self, choice: Pass) -> int:
        """Rows of one forward pass; one that is too long for the budget goes alone."""
        return min(self.mine, max(1, choice.tokens_per_batch // self.tokens))

    def memory(self, choice: Pass) -> Memory:
        """Of one device. Weights and what belongs to them are spread by FSDP, the layers that compute gathered."""
        found, rows = self.footprint, self.per_pass(choice)
        fixed, moving = found.fixed, found.moving(rows, choice.grad_cache, choice.gradient_checkpointing)
        shards = self.target.count if self.target.sharding == "fsdp" else 1
        parts = {name: math.ceil(size / shards) for name, size in fixed.items()}
        if shards > 1:
            parts["layers gathered"] = found.gathered
        for name, size in moving.items():
            parts[name] = math.ceil(size / shards) if name == "gradients" else size
        kind = "cpu" if self.target.device.type == "cpu" else "other"
        parts["runtime"] = RUNTIME[kind]
        return Memory(parts)

    def flops(self, choice: Pass) -> float:
        """Of one step, on all devices."""
        rows = self.per_pass(choice)
        return self.footprint.flops_per_row(rows, choice.grad_cache, choice.gradient_checkpointing) * self.rows

    def fitting(self) -> Pass | None:
        """The largest passes that fit, made smaller by what costs no time first."""
        caches = [True] if self.as_set.grad_cache else [False, True]
        contrastive = isinstance(self.settings, Contrastive)
        ways = [(cache, False) for cache in (caches if contrastive else [False])]
        if self.as_set.gradient_checkpointing:
            ways = [(cache, True) for cache, _ in ways]
        elif self.footprint.can_checkpoint and self.settings.gradient_checkpointing == "auto":
            ways.append((contrastive, True))
        for cache, checkpointing in ways:
            rows = self._most_rows(cache, checkpointing)
            if rows:
                return Pass(rows * self.tokens, cache, checkpointing)
        return None

    def _most_rows(self, cache: bool, checkpointing: bool) -> int:
        """The most rows in a pass that fit, 0 if not one does. Memory grows by about the same with each row."""

        def size(rows: int) -> int:
            return self.memory(Pass(rows * self.tokens, cache, checkpointing)).total

        room, low, high = self.target.memory, 1, self.mine
        if size(high) <= room:
            return high
        if size(low) > room:
            return 0
        while high - low > 1:
            below, above = size(low), size(high)
            guess = low + int((high - low) * (room - below) / max(1, above - below))
            guess = min(max(guess, low + 1), high - 1)
            if size(guess) <= room:
                low = guess
            else:
                high = guess
        return low

    def advice(self, as_set: Memory, fitting: Pass | None) -> str:
        """What to set, in one line."""
        room = self.target.memory
        if fitting is None:
            least = self.memory(
                Pass(self.tokens, isinstance(self.settings, Contrastive), self.footprint.can_checkpoint)
            )
            cures = ["tune: lora"] if self.settings.tune == "full" else []
            cures += ["shorter rows", "a larger device"]
            cures += ["--sharding fsdp"] if self.target.sharding == "none" and self.settings.tune == "full" else []
            return (
                f"does not fit: one row of {self.tokens} tokens takes {gib(least.total)} of {gib(room)}. "
                f"Use {', '.join(cures[:-1])} or {cures[-1]}."
            )
        state = "as set, it fits" if as_set.total <= room else f"as set, it takes {gib(as_set.total)} of {gib(room)}"
        whole = fitting.tokens_per_batch >= self.mine * self.tokens
        most = "takes the whole batch at once" if whole else "is the most that fits"
        wanted = [f"tokens_per_batch: {fitting.tokens_per_batch} {most}"]
        if fitting.grad_cache and not self.as_set.grad_cache:
            wanted.append("with grad_cache: true")
        needed = "needed" if fitting.gradient_checkpointing else "not needed"
        return f"{state}; {' '.join(wanted)}; gradient checkpointing is {needed}."


def gib(size: float) -> str:
    """Bytes for a reader."""
    return f"{size / 2**30:.2f} GiB"


def plan_all(
    stages: Sequence[tuple[str, Training]],
    config: Callable[[], PreTrainedConfig],
    encoder: EncoderSettings,
    made: Making,
    target: Target,
) -> list[StagePlan]:
    """The plans of some stages. `config` makes a new one for each, because a model keeps and changes its config."""
    return [plan_stage(stage, settings, config(), encoder, made, target) for stage, settings in stages]


def as_plain(plan: StagePlan, target: Target) -> dict[str, Any]:
    """The plan as JSON takes it."""
    plain: dict[str, Any] = {**vars(plan), "sizes": vars(plan.sizes), "notes": list(plan.notes)}
    for name in ("as_set", "fits"):
        memory = getattr(plan, name)
        plain[name] = None if memory is None else {**memory.parts, "total": memory.total}
    plain["fitting"] = None if plan.fitting is None else vars(plan.fitting)
    plain["device"] = {"name": target.name, "memory": target.memory, "count": target.count, "sharding": target.sharding}
    plain["time_by"] = target.why
    return plain
