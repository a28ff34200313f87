"""Two-way recurrence: a sub-module that only looks back is run over the text in both directions.

State-space, delta-rule, gated and convolutional mixers hide the future by the way they compute, so that no mask opens
them. The instance's `forward` is put behind one that calls it twice: parameters, their names, adapters and checkpoints
stay as they are. What is turned round are the real tokens of each row, found by measuring which arguments depend on
the tokens; padding stays where it is, and so does what depends on the position alone: to the mixer, the reversed text
is a text like any other. A learned gate lets the second direction in, a little at first.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from bothways.bidirectional.gate import GATE, Gate
from bothways.bidirectional.movement import Batch, run, token_axis
from bothways.bidirectional.nested import Path, rebuilt, tensors
from bothways.errors import ConversionError

TREATMENT = "run in both directions"

Spots = Mapping[Path, int]
"""Where the tensors with an axis for the tokens sit, and which axis that is."""


@dataclass
class Rows:
    """The real tokens of the batch that is being computed: (batch, tokens) position of each token's mirror image."""

    mirror: Tensor | None
    """None where there is no padding: then the mirror image is a flip."""

    @classmethod
    def of(cls, mask: Tensor | None) -> Rows:
        """From an attention mask, 1 for real tokens. Padding is its own mirror image, wherever it stands."""
        if mask is None:
            return cls(None)
        real = mask.bool()
        rank = real.cumsum(dim=1) - 1
        # The real positions of each row first, in order.
        order = torch.argsort((~real).to(torch.int8), dim=1, stable=True)
        mirrored = order.gather(1, (real.sum(dim=1, keepdim=True) - 1 - rank).clamp(min=0))
        return cls(torch.where(real, mirrored, torch.arange(mask.shape[1], device=mask.device)))

    def reverse(self, item: Tensor, axis: int) -> Tensor:
        """`item` with the real tokens of each row in the opposite order; its first axis is the batch."""
        if self.mirror is None:
            return item.flip(axis)
        order = self.mirror.to(item.device)
        batch = torch.arange(len(order), device=item.device)[:, None]
        return item.movedim(axis, 1)[batch, order].movedim(1, axis)


@dataclass
class Padding:
    """Knows, while the model computes, which tokens are real. One for all two-way sub-modules of a model."""

    stack: list[Rows] = field(default_factory=list)

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Forward pre-hook of the model: notes the mask, and keeps caches away, which would remember one direction."""
        names = list(inspect.signature(type(module).forward).parameters)[1:]
        given = dict(zip(names, args, strict=False)) | kwargs
        mask = given.get("attention_mask")
        if given.get("past_key_values") is not None:
            raise ConversionError(
                f"{type(module).__name__} was given past_key_values, but it was made bidirectional: a text is read as "
                "a whole.\n  Pass the whole text, without a cache."
            )
        if isinstance(mask, Tensor) and mask.ndim == 2:
            self.stack.append(Rows.of(mask))
        elif mask is None or self.stack:
            # Inner models may be handed masks that the outer one made ready.
            self.stack.append(self.stack[-1] if self.stack else Rows(None))
        else:
            raise ConversionError(
                f"{type(module).__name__} was given a ready attention mask, but part of it is {TREATMENT}, for which "
                "the real tokens must be known.\n  Pass attention_mask of shape (batch, tokens), 1 for real tokens."
            )
        if "use_cache" in names:
            place = names.index("use_cache")
            if place < len(args):
                args = (*args[:place], False, *args[place + 1 :])
            else:
                kwargs = {**kwargs, "use_cache": False}
        return args, kwargs

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        """Forward hook of the model, called after an error too."""
        if self.stack:
            self.stack.pop()

    @property
    def rows(self) -> Rows:
        if not self.stack:
            raise ConversionError(
                f"A sub-module that is {TREATMENT} was called outside its model's forward pass, where nothing says "
                "which tokens are real.\n  Call the model; for activation checkpointing use "
                "model.activation_checkpointing_enable()."
            )
        return self.stack[-1]

    def in_layer(self, layer: nn.Module, args: Any) -> None:
        """Forward pre-hook of a layer: when it is computed again for its gradient, the batch's rows are known again."""
        checkpoint = vars(layer).get("_gradient_checkpointing_func")
        if checkpoint is not None and not isinstance(checkpoint, _Checkpoint):
            vars(layer)["_gradient_checkpointing_func"] = _Checkpoint(checkpoint, self)


@dataclass
class _Checkpoint:
    """An activation checkpoint that computes again with the rows it was first computed with."""

    checkpoint: Callable[..., Any]
    padding: Padding

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.checkpoint(partial(self._again, self.padding.rows, function), *args, **kwargs)

    def _again(self, rows: Rows, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.padding.stack.append(rows)
        try:
            return function(*args, **kwargs)
        finally:
            self.padding.stack.pop()


class TwoWay:
    """Stands where a sub-module's `forward` was: the same call, over the text and over its mirror image."""

    def __init__(self, module: nn.Module, padding: Padding, inputs: Spots, outputs: Spots) -> None:
        self.module = module
        # A forward that someone else has put on the instance (a device map's hooks) stays in use.
        self.inner: Callable[..., Any] | None = vars(module).get("forward")
        self.padding, self.inputs, self.outputs = padding, dict(inputs), dict(outputs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        rows, gate = self.padding.rows, self.module.get_submodule(GATE)
        args, kwargs = rebuilt((args, kwargs), lambda _, part: None if isinstance(part, Cache) else part)
        forward = self._one_way(*args, **kwargs)

        def mirror(path: Path, part: Any) -> Any:
            return rows.reverse(part, self.inputs[path]) if path in self.inputs else part

        mirrored_args, mirrored_kwargs = rebuilt((args, kwargs), mirror)
        backward = dict(tensors(self._one_way(*mirrored_args, **mirrored_kwargs)))

        def combine(path: Path, part: Any) -> Any:
            axis = self.outputs.get(path)
            return part if axis is None else gate(part, rows.reverse(backward[path], axis))

        return rebuilt(forward, combine)

    def _one_way(self, *args: Any, **kwargs: Any) -> Any:
        if self.inner is not None:
            return self.inner(*args, **kwargs)
        return type(self.module).forward(self.module, *args, **kwargs)


def run_both_ways(model: PreTrainedModel, names: Sequence[str], batch: Batch) -> None:
    """Puts the named sub-modules of `model` behind `TwoWay`, in place.

    `batch` has other ids at every position in `other_ids`. Raises ConversionError for a sub-module whose arguments or
    outputs show no axis for the tokens.
    """
    inputs, outputs, states = _watched(model, names, batch)
    padding = _padding_of(model)
    for name in names:
        if not inputs[name] or not outputs[name]:
            raise ConversionError(
                f"{model.config.model_type}: {name} ({type(model.get_submodule(name)).__name__}) mixes tokens one way, "
                "but takes or returns nothing with an axis for the tokens, so it cannot be run in both directions.\n"
                '  Keep the model one-way with direction="causal", or report the architecture.'
            )
        module = model.get_submodule(name)
        # Of several outputs, as of queries, keys and values, one share is that of all channels.
        several = len(outputs[name]) > 1 or states[name].ndim != 3
        module.add_module(GATE, Gate(1 if several else states[name].shape[-1]).to(states[name]))
        # nn.Module would file a module under its children; this is none.
        vars(module)["forward"] = TwoWay(module, padding, inputs[name], outputs[name])
        for layer in _layers_around(model, name):
            if not any(hook == padding.in_layer for hook in layer._forward_pre_hooks.values()):
                layer.register_forward_pre_hook(padding.in_layer)


def run_one_way(model: nn.Module) -> None:
    """Undoes `run_both_ways`."""
    for module in model.modules():
        forward = vars(module).get("forward")
        if isinstance(forward, TwoWay):
            del vars(module)["forward"], module._modules[GATE]
            if forward.inner is not None:
                vars(module)["forward"] = forward.inner
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for number, hook in list(hooks.items()):
                if isinstance(getattr(hook, "__self__", None), Padding):
                    del hooks[number]
                    module._forward_pre_hooks_with_kwargs.pop(number, None)
                    module._forward_hooks_always_called.pop(number, None)
        checkpoint = vars(module).get("_gradient_checkpointing_func")
        if isinstance(checkpoint, _Checkpoint):
            vars(module)["_gradient_checkpointing_func"] = checkpoint.checkpoint


def runs_both_ways(model: nn.Module) -> list[str]:
    """Names of the sub-modules that are behind `TwoWay`."""
    return [name for name, module in model.named_modules() if isinstance(vars(module).get("forward"), TwoWay)]


def _padding_of(model: PreTrainedModel) -> Padding:
    for module in model.modules():
        forward = vars(module).get("forward")
        if isinstance(forward, TwoWay):
            return forward.padding
    padding = Padding()
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.register_forward_pre_hook(padding.before, with_kwargs=True, prepend=True)
            module.register_forward_hook(padding.after, always_call=True)
    return padding


def _layers_around(model: nn.Module, name: str) -> Iterator[nn.Module]:
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        module = model.get_submodule(".".join(parts[:length]))
        if isinstance(module, GradientCheckpointingLayer):
            yield module


def _watched(
    model: PreTrainedModel, names: Sequence[str], batch: Batch
) -> tuple[dict[str, dict[Path, int]], dict[str, dict[Path, int]], dict[str, Tensor]]:
    """Where each named sub-module takes what depends on the tokens, where it returns it, and one that it returned."""
    seen: dict[str, list[dict[Path, Tensor]]] = {name: [] for name in names}
    outputs: dict[str, dict[Path, int]] = {name: {} for name in names}
    states: dict[str, Tensor] = {}

    def watch(name: str, args: Any, kwargs: Any, output: Any) -> None:
        seen[name].append(dict(tensors((args, kwargs))))
        for path, item in tensors(output):
            axis = token_axis(item, batch)
            if axis is not None:
                outputs[name][path], states[name] = axis, item

    with _watching(model, names, watch):
        run(model, batch.ids, batch)
        run(model, batch.other_ids, batch)
    inputs: dict[str, dict[Path, int]] = {name: {} for name in names}
    for name, calls in seen.items():
        half = len(calls) // 2
        for one, other in zip(calls[:half], calls[half:], strict=True):
            for path in one.keys() & other.keys():
                axis = token_axis(one[path], batch)
                if axis is not None and not torch.equal(one[path], other[path]):
                    inputs[name][path] = axis
    return inputs, outputs, states


@contextmanager
def _watching(model: nn.Module, names: Sequence[str], watch: Callable[..., None]) -> Iterator[None]:
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda module, args, kwargs, output, name=name: watch(name, args, kwargs, output), with_kwargs=True
        )
        for name in names
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
