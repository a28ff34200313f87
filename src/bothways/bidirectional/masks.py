"""Masks that are always made: some eager kernels fail where a model, seeing nothing to hide, hands them none."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask, create_bidirectional_sliding_window_mask

from bothways.bidirectional.movement import body_of

TREATMENT = "mask always made"
SLIDING = "sliding_attention"


def always_make_masks(model: PreTrainedModel) -> None:
    """Has `model` make its masks also where no token is hidden, in place."""
    body_of(model).register_forward_pre_hook(_ready_mask, with_kwargs=True)


def make_masks_when_needed(model: PreTrainedModel) -> None:
    """Undoes `always_make_masks`."""
    hooks = body_of(model)._forward_pre_hooks
    for number in [number for number, hook in hooks.items() if hook is _ready_mask]:
        del hooks[number]
        body_of(model)._forward_pre_hooks_with_kwargs.pop(number, None)


def masks_are_always_made(model: PreTrainedModel) -> bool:
    """Whether `always_make_masks` was called."""
    return _ready_mask in body_of(model)._forward_pre_hooks.values()


def _ready_mask(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    assert isinstance(module, PreTrainedModel)
    given = inspect.signature(type(module).forward).bind(module, *args, **kwargs)
    mask = given.arguments.get("attention_mask")
    if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2):
        return args, kwargs
    states = given.arguments.get("input_ids")
    states = given.arguments["inputs_embeds"] if states is None else states
    rows, tokens = states.shape[:2]
    shape: dict[str, Any] = {
        "config": module.config,
        "inputs_embeds": torch.empty(rows, tokens, 0, dtype=module.dtype, device=states.device),
        "attention_mask": mask,
        "allow_is_bidirectional_skip": False,
    }
    full = create_bidirectional_mask(**shape)
    kinds = set(getattr(module.config, "layer_types", None) or ())
    if SLIDING in kinds:
        sliding = create_bidirectional_sliding_window_mask(**shape)
        given.arguments["attention_mask"] = {kind: sliding if kind == SLIDING else full for kind in kinds}
    else:
        given.arguments["attention_mask"] = full
    return given.args[1:], given.kwargs
