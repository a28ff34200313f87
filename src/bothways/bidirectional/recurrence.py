"""Two-way recurrence: a sub-module that only looks back is run over the text in both directions.

State-space, delta-rule, gated and convolutional mixers hide the future by the way they compute, so that no mask opens
them. A forward hook calls such a sub-module a second time: parameters, their names, adapters and checkpoints stay as
they are. What is turned round are the real tokens of each row, found by measuring which arguments depend on the tokens;
padding stays where it is, and so does what depends on the position alone: to the mixer, the reversed text is a text
like any other. A learned gate lets the second direction in, a little at first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from bothways.bidirectional.directions import TREATMENT, Checkpoint, Entrance, Padding, TwoWay
from bothways.bidirectional.gate import GATE, Gate
from bothways.bidirectional.movement import Batch, run, token_axis
from bothways.bidirectional.nested import Path, tensors
from bothways.errors import ConversionError

__all__ = ["TREATMENT", "run_both_ways", "run_one_way", "runs_both_ways"]


def run_both_ways(model: PreTrainedModel, names: Sequence[str], batch: Batch) -> None:
    """Gives the named sub-modules of `model` their second direction, in place.

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
        # Before all other hooks, which see what comes out of both directions.
        module.register_forward_hook(TwoWay(padding, inputs[name], outputs[name]), with_kwargs=True, prepend=True)
        for layer in _layers_around(model, name):
            if not any(hook == padding.in_layer for hook in layer._forward_pre_hooks.values()):
                layer.register_forward_pre_hook(padding.in_layer)


def run_one_way(model: nn.Module) -> None:
    """Undoes `run_both_ways`."""
    for module in model.modules():
        if _two_way(module) is not None:
            del module._modules[GATE]
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for number, hook in list(hooks.items()):
                if isinstance(hook, TwoWay) or isinstance(getattr(hook, "__self__", None), Padding | Entrance):
                    del hooks[number]
                    module._forward_pre_hooks_with_kwargs.pop(number, None)
                    module._forward_hooks_with_kwargs.pop(number, None)
                    module._forward_hooks_always_called.pop(number, None)
        checkpoint = vars(module).get("_gradient_checkpointing_func")
        if isinstance(checkpoint, Checkpoint):
            vars(module)["_gradient_checkpointing_func"] = checkpoint.checkpoint


def runs_both_ways(model: nn.Module) -> list[str]:
    """Names of the sub-modules that have a second direction."""
    return [name for name, module in model.named_modules() if _two_way(module) is not None]


def _two_way(module: nn.Module) -> TwoWay | None:
    return next((hook for hook in module._forward_hooks.values() if isinstance(hook, TwoWay)), None)


def _padding_of(model: PreTrainedModel) -> Padding:
    for module in model.modules():
        known = _two_way(module)
        if known is not None:
            return known.padding
    padding = Padding()
    models = [name for name, module in model.named_modules() if isinstance(module, PreTrainedModel)]
    for name in models:
        depth = sum(other != name and (not other or name.startswith(f"{other}.")) for other in models)
        entrance, module = Entrance(padding, depth), model.get_submodule(name)
        module.register_forward_pre_hook(entrance.before, with_kwargs=True, prepend=True)
        module.register_forward_hook(entrance.after, always_call=True)
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
