"""Biases by position that look both ways: ALiBi as -slope * |i - j|, and learned ones by distance, for either side.

Behind a causal mask, slope * j differs from -slope * (i - j) by a constant of the row, which the softmax forgets; so
bloom, mpt and falcon compute the former. Without the mask it would draw nearly all attention to the end of the text.
From such a bias a over the keys alone, -|a_i - a_j| is the even one, whatever the slopes and wherever padding stands.
Inkling learns a bias for each distance, and has none for what lies ahead: there it gets that of the same distance back.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

TREATMENT = "ALiBi mirrored"
RELATIVE = "relative bias mirrored"
DISTANCES = {"query_positions", "key_positions"}
"""What a module that makes a bias of distances is handed."""
BIASES = ("alibi", "position_bias")
"""What attention modules call the bias over the keys that they are handed."""


def mirror_biases(model: nn.Module) -> dict[str, str]:
    """Has every attention module see an even bias, in place; its name -> what was done. Sound to call twice."""
    done = {}
    for name, module in model.named_modules():
        if set(inspect.signature(type(module).forward).parameters) >= DISTANCES:
            if _look_ahead not in module._forward_hooks.values():
                module.register_forward_hook(_look_ahead, with_kwargs=True)
            done[name.rpartition(".")[0]] = RELATIVE
    for name, module, argument in _handed_alibi(model):
        hook = _merge_into_mask if hasattr(module, "new_decoder_architecture") else _replace
        if hook not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(hook, with_kwargs=True)
        done[name] = f"{TREATMENT} ({argument})"
    return done


def biases_are_mirrored(model: nn.Module) -> bool:
    """Whether `mirror_biases` has changed anything."""
    ours = (_merge_into_mask, _replace, _look_ahead)
    return any(
        hook in ours
        for module in model.modules()
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    )


def unmirror_biases(model: nn.Module) -> None:
    """Undoes `mirror_biases`."""
    for module in model.modules():
        for hooks, kwargs in (
            (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
            (module._forward_hooks, module._forward_hooks_with_kwargs),
        ):
            for number in [
                number for number, hook in hooks.items() if hook in (_merge_into_mask, _replace, _look_ahead)
            ]:
                del hooks[number]
                kwargs.pop(number, None)


def has_alibi(model: PreTrainedModel) -> bool:
    """Whether anything in the model speaks of ALiBi and no config says that it is off."""
    stated = [
        value
        for module in model.modules()
        if isinstance(value := getattr(getattr(module, "config", None), "alibi", None), bool)
    ]
    if stated:
        return any(stated)
    return any("alibi" in key for module in model.modules() for key in (*dir(type(module)), *module._buffers))


def even_bias(bias: Tensor) -> Tensor:
    """(..., 1, keys) -> (..., keys, keys): minus the distance of what the keys are given."""
    return -(bias - bias.transpose(-1, -2)).abs()


def _handed_alibi(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    if not (isinstance(model, PreTrainedModel) and has_alibi(model)):
        return
    for name, module in model.named_modules():
        takes = inspect.signature(type(module).forward).parameters
        argument = next((key for key in BIASES if key in takes), None)
        # A block hands it on to its attention: the module that has no such part is the one that adds it.
        inner = (
            inspect.signature(type(part).forward).parameters for _, part in module.named_modules() if part is not module
        )
        if argument is not None and not any(argument in parameters for parameters in inner):
            yield name, module, argument


def _replace(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """bloom, mpt: the module adds what it is handed, of any shape that broadcasts."""
    given = inspect.signature(type(module).forward).bind(module, *args, **kwargs)
    name = next(key for key in BIASES if key in given.arguments)
    tokens = given.arguments["hidden_states"].shape[1]
    # mpt builds the bias for the longest text it can read; any run of neighbours will do.
    given.arguments[name] = even_bias(given.arguments[name][..., -tokens:])
    return given.args[1:], given.kwargs


def _merge_into_mask(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """falcon: the bias is in the mask already, and eager attention adds it over the keys once more."""
    given = inspect.signature(type(module).forward).bind(module, *args, **kwargs)
    mask, alibi = given.arguments["attention_mask"], given.arguments["alibi"]
    if alibi is None:
        return args, kwargs
    heads = alibi.view(mask.shape[0], -1, 1, alibi.shape[-1])
    bias = even_bias(heads)
    if module.config._attn_implementation != "sdpa":
        bias = bias - heads
    lowest = torch.finfo(mask.dtype).min
    given.arguments["attention_mask"] = (bias * module.inv_norm_factor).masked_fill(mask <= lowest / 2, lowest)
    return given.args[1:], given.kwargs


def _look_ahead(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
    """(batch, heads, queries, keys) biases, with those of the keys ahead taken from the mirrored positions."""
    given = inspect.signature(type(module).forward).bind(module, *args, **kwargs)
    queries, keys = given.arguments["query_positions"], given.arguments["key_positions"]
    given.arguments.update(query_positions=-queries, key_positions=-keys)
    ahead = type(module).forward(*given.args, **given.kwargs)
    return torch.where(keys[None, :] > queries[:, None], ahead, output)
