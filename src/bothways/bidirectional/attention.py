"""Everything in an attention-only decoder that hides the future: config flags, module flags, buffers, layer types."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

CHUNKED, FULL = "chunked_attention", "full_attention"
NATIVE_KEY = "use_bidirectional_attention"

# Sub-models for other media are not ours to convert.
NOT_TEXT = re.compile("vision|visual|audio|image|video|speech|vq", re.IGNORECASE)


def prepare(config: PreTrainedConfig, direction: Literal["bidirectional", "causal"] = "bidirectional") -> None:
    """Sets what the config and those of its text sub-models say of direction; before or after loading, in place.

    A family's own key, where it is set, stays alone: beside `is_causal` its windows would be one wider than elsewhere.
    "causal" undoes `is_causal: false` only, because the layer types of a chunked model are gone by then.
    """
    for part in text_configs(config):
        part.use_cache = False
        if direction == "bidirectional":
            if not has_native_key(part) or not getattr(part, NATIVE_KEY):
                part.is_causal = False
            if CHUNKED in (getattr(part, "layer_types", None) or ()):
                # Masks of chunked layers ignore `is_causal`.
                part.layer_types = [FULL if kind == CHUNKED else kind for kind in part.layer_types]
        elif getattr(part, "is_causal", None) is False:
            part.is_causal = True


def treat(model: nn.Module, *, open_windows: bool = False) -> dict[str, str]:
    """Changes what sub-modules themselves remember of direction; needed again after every load.

    Returns sub-module name -> what was changed. Sound to call twice. `open_windows` opens bands in mask buffers too.
    """
    done: dict[str, list[str]] = {}
    for name, module in text_modules(model):
        if isinstance(getattr(module, "is_causal", None), bool):
            # stablelm and nemotron do not hand the config's flag to the kernel, which then asks the module.
            vars(module)["is_causal"] = False
            done.setdefault(name, []).append("is_causal=False")
        for key, buffer in triangles(module):
            with torch.no_grad():
                mirrored = torch.maximum(buffer, buffer.transpose(-1, -2))
                buffer.copy_(torch.ones_like(buffer) if open_windows else mirrored)
            done.setdefault(name, []).append(f"buffer {key} mirrored")
    return {name: ", ".join(changes) for name, changes in done.items()}


def says_bidirectional(config: PreTrainedConfig) -> bool:
    """Whether a config, or that of a text sub-model, opens the attention of what is loaded with it."""
    return any(
        getattr(part, "is_causal", True) is False or (has_native_key(part) and bool(getattr(part, NATIVE_KEY)))
        for part in text_configs(config)
    )


def has_native_key(config: PreTrainedConfig) -> bool:
    """Whether the family opens its attention, and narrows its windows, by a key of its own (Gemma 3)."""
    return isinstance(getattr(config, NATIVE_KEY, None), bool) and isinstance(
        getattr(config, "sliding_window", None), int
    )


def text_configs_of(model: nn.Module) -> list[PreTrainedConfig]:
    """Every config that a text part of the model holds: some are shared, some are copies of their own."""
    held = (getattr(module, "config", None) for _, module in text_modules(model))
    found = (part for config in held if isinstance(config, PreTrainedConfig) for part in text_configs(config))
    return list({id(part): part for part in found}.values())


def text_configs(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    yield config
    for key, part in vars(config).items():
        if isinstance(part, PreTrainedConfig) and not NOT_TEXT.search(f"{key} {part.model_type}"):
            yield from text_configs(part)


def text_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, module) for name, module in model.named_modules() if not NOT_TEXT.search(name))


def triangles(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Buffers that say with 0 and 1 which earlier positions may be seen; a decay of the same shape is not one."""
    for key, buffer in module.named_buffers(recurse=False):
        if buffer.ndim < 2 or buffer.shape[-1] != buffer.shape[-2] or buffer.shape[-1] < 2:
            continue
        binary = buffer.dtype == torch.bool or bool(((buffer == 0) | (buffer == 1)).all())
        if not binary or not bool(buffer.diagonal(dim1=-2, dim2=-1).all()):
            continue
        below, above = torch.tril(buffer, -1), torch.triu(buffer, 1)
        if bool(below.any()) and not bool(above.any()):
            yield key, buffer
