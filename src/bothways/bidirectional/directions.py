"""What happens in a two-way sub-module while the model computes: its second direction, and which tokens are real."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from bothways.bidirectional.gate import GATE
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


class _Stack(threading.local):
    def __init__(self) -> None:
        self.entries: list[tuple[int, Rows]] = []


class Padding:
    """Knows, while the model computes, which tokens are real: in each thread those of its own batch.

    One for all two-way sub-modules of a model. The models that enclose one another note what they are given, each at
    its depth; the innermost counts.
    """

    def __init__(self) -> None:
        self._stack = _Stack()

    def __reduce__(self) -> Any:
        # What is being computed is not copied, nor pickled.
        return Padding, ()

    @property
    def rows(self) -> Rows:
        """Of the batch that is being computed. Raises ConversionError outside a forward pass."""
        entries = self._stack.entries
        if not entries:
            raise ConversionError(
                f"A sub-module that is {TREATMENT} was called outside its model's forward pass, where nothing says "
                "which tokens are real.\n  Call the model; for activation checkpointing use "
                "model.activation_checkpointing_enable()."
            )
        return entries[-1][1]

    @property
    def depth(self) -> int:
        """Of the innermost model that is being computed; -1 if none is."""
        return self._stack.entries[-1][0] if self._stack.entries else -1

    def enter(self, depth: int, rows: Rows | None) -> None:
        """Notes the rows of a model at this depth; None: those of the model around it."""
        self.leave(depth)
        entries = self._stack.entries
        if rows is None:
            rows = entries[-1][1] if entries else Rows(None)
        entries.append((depth, rows))

    def leave(self, depth: int) -> None:
        """Forgets a model at this depth and those inside it, also where an interrupt left some behind."""
        entries = self._stack.entries
        while entries and entries[-1][0] >= depth:
            entries.pop()

    def within(self, depth: int) -> bool:
        """Whether a model around this depth is being computed."""
        return any(entry[0] < depth for entry in self._stack.entries)

    def in_layer(self, layer: nn.Module, args: Any) -> None:
        """Forward pre-hook of a layer: when it is computed again for its gradient, the batch's rows are known again."""
        checkpoint = vars(layer).get("_gradient_checkpointing_func")
        if checkpoint is not None and not isinstance(checkpoint, Checkpoint):
            vars(layer)["_gradient_checkpointing_func"] = Checkpoint(checkpoint, self)


@dataclass
class Entrance:
    """The hooks of one model that contains two-way sub-modules."""

    padding: Padding
    depth: int
    """How many such models are around it."""

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Forward pre-hook: notes the mask, and keeps caches away, which would remember one direction."""
        names = list(inspect.signature(type(module).forward).parameters)[1:]
        given = dict(zip(names, args, strict=False)) | kwargs
        mask = given.get("attention_mask")
        if given.get("past_key_values") is not None:
            raise ConversionError(
                f"{type(module).__name__} was given past_key_values, but it was made bidirectional: a text is read as "
                "a whole.\n  Pass the whole text, without a cache."
            )
        if isinstance(mask, Tensor) and mask.ndim == 2:
            self.padding.enter(self.depth, Rows.of(mask))
        elif mask is None or self.padding.within(self.depth):
            # Inner models may be handed masks that the outer one made ready.
            self.padding.enter(self.depth, None)
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
        """Forward hook, called after an error too."""
        self.padding.leave(self.depth)


@dataclass
class Checkpoint:
    """An activation checkpoint that computes again with the rows it was first computed with."""

    checkpoint: Callable[..., Any]
    padding: Padding

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.checkpoint(partial(self._again, self.padding.rows, function), *args, **kwargs)

    def _again(self, rows: Rows, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # Deeper than what is being computed, which stays known: checkpointed layers may contain one another.
        depth = self.padding.depth + 1
        self.padding.enter(depth, rows)
        try:
            return function(*args, **kwargs)
        finally:
            self.padding.leave(depth)


@dataclass
class TwoWay:
    """Forward hook of a sub-module that looks back: runs it over the mirror image too, and lets that in by its gate."""

    padding: Padding
    inputs: Spots
    outputs: Spots

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        rows, gate = self.padding.rows, module.get_submodule(GATE)

        def mirror(path: Path, part: Any) -> Any:
            if path in self.inputs:
                return rows.reverse(part, self.inputs[path])
            return None if isinstance(part, Cache) else part

        mirrored_args, mirrored_kwargs = rebuilt((args, kwargs), mirror)
        # Not called as a module, which would come here again.
        backward = dict(tensors(module.forward(*mirrored_args, **mirrored_kwargs)))

        def combine(path: Path, part: Any) -> Any:
            axis = self.outputs.get(path)
            return part if axis is None else gate(part, rows.reverse(backward[path], axis))

        return rebuilt(output, combine)


def called(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a sub-module computes, both ways if it is two-way, without anybody's other hooks."""
    output = module.forward(*args, **kwargs)
    for hook in module._forward_hooks.values():
        if isinstance(hook, TwoWay):
            output = hook(module, args, kwargs, output)
    return output
