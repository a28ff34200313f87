"""Where one training step spends its time: torch's profiler, its operations sorted by the part that called them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

MARK = "part: "
LINEAR, ADAPTERS, ATTENTION, HEAD = "linear layers", "adapters", "attention", "head and loss"
OPTIMISER, REST = "clipping and optimiser", "everything else"
PRODUCTS = frozenset({"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::mkldnn_linear"})
"""Operations that multiply matrices. Fused attention does it too, but not alone."""
BACKWARD = "autograd::engine::evaluate_function"


class Profile:
    """Profiles what happens between `start` and `stop`, with a mark around every part of the encoder's model."""

    def __init__(self, encoder: nn.Module) -> None:
        self.encoder = encoder

    def start(self) -> None:
        """Put the marks on."""
        from bothways.stages import mntp

        self.marks = ExitStack()
        for path, module in self.encoder.named_modules():
            # The matrices inside an adapter are part of it.
            if "lora_" not in path and (name := part_of(module)):
                _mark(module, name, self.marks)
        for owner, function, name in (
            (mntp, "token_cross_entropy", HEAD),
            (torch.nn.utils, "clip_grad_norm_", OPTIMISER),
            *((owner, "apply_rotary_pos_emb", "rotary positions") for owner in _homes(self.encoder)),
        ):
            self.marks.enter_context(patch.object(owner, function, _marked(getattr(owner, function), name)))
        self.cuda = next(self.encoder.parameters()).is_cuda
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.cuda else [])]
        self.profile = profile(activities=activities)
        self.profile.__enter__()

    def stop(self) -> dict[str, dict[str, float]]:
        """Part -> its own seconds in a step, forward and backward, and those of them in matrix multiplications."""
        self.profile.__exit__(None, None, None)
        self.marks.close()
        return by_part(self.profile.events(), "self_device_time_total" if self.cuda else "self_cpu_time_total")


def part_of(module: nn.Module) -> str | None:
    """The part that a module is, by what transformers and peft call its class; None: that of whoever calls it."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    kind = type(module).__name__
    if isinstance(module, BaseTunerLayer):
        return ADAPTERS
    if isinstance(module, nn.Embedding):
        return "embedding"
    if isinstance(module, nn.Linear):
        return LINEAR
    for ending, name in (
        ("RotaryEmbedding", "rotary positions"),
        ("Norm", "norms"),
        ("Attention", ATTENTION),
        ("MLP", "activations of the MLP"),
        ("DecoderLayer", "residual sums"),
    ):
        if kind.endswith(ending):
            return name
    return None


def by_part(events: Any, time: str) -> dict[str, dict[str, float]]:
    """Seconds by part of the profiler's events; `time` names the attribute that has an event's own microseconds."""
    # The kernels of a GPU are events too; their time is also that of the operations that launched them.
    events = (event for event in events if event.device_type == DeviceType.CPU)
    events = sorted(events, key=lambda event: event.time_range.start)
    # An operation of the backward pass bears the number of the forward operation that made its node: of those that bear
    # the number it was the last.
    forward = {event.sequence_nr: _part(event, {}) for event in events if event.sequence_nr >= 0 and not _behind(event)}
    found: dict[str, dict[str, float]] = defaultdict(lambda: {"seconds": 0.0, "multiplying": 0.0})
    for event in events:
        seconds = getattr(event, time) / 1e6
        part = found[_part(event, forward)]
        part["seconds"] += seconds
        if event.name in PRODUCTS:
            part["multiplying"] += seconds
    return {name: dict(part) for name, part in sorted(found.items(), key=lambda item: -item[1]["seconds"])}


def _part(event: Any, forward: dict[int, str]) -> str:
    while event is not None:
        if event.name.startswith(MARK):
            return str(event.name.removeprefix(MARK))
        if event.name.startswith("Optimizer."):
            return OPTIMISER
        if event.name.startswith(BACKWARD):
            return forward.get(event.sequence_nr, REST)
        event = event.cpu_parent
    return REST


def _behind(event: Any) -> bool:
    """Whether an event belongs to the backward pass."""
    while event is not None:
        if event.name.startswith(BACKWARD):
            return True
        event = event.cpu_parent
    return False


def _mark(module: nn.Module, name: str, marks: ExitStack) -> None:
    open_marks: list[record_function] = []

    def enter(*_: Any) -> None:
        open_marks.append(record_function(MARK + name))
        open_marks[-1].__enter__()

    def leave(*_: Any) -> None:
        open_marks.pop().__exit__(None, None, None)

    marks.callback(module.register_forward_pre_hook(enter).remove)
    marks.callback(module.register_forward_hook(leave).remove)


def _marked(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    @wraps(function)
    def marked(*arguments: Any, **named: Any) -> Any:
        with record_function(MARK + name):
            return function(*arguments, **named)

    return marked


def _homes(encoder: nn.Module) -> list[Any]:
    """The modules of transformers in which this model's attention looks for its rotary function."""
    import sys

    homes = {type(module).__module__ for module in encoder.modules() if type(module).__name__.endswith("Attention")}
    return [sys.modules[home] for home in sorted(homes) if hasattr(sys.modules[home], "apply_rotary_pos_emb")]
