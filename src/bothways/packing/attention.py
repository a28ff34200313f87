"""Attention text by text: what transformers calls in place of a kernel of its own, and in place of making a mask."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bothways import hardware
from bothways.packing.sight import Sight, Texts

PREFIX = "packed_"
"""What our attention implementations are called: this, and the kernel that computes each text."""
KERNELS = ("eager", "sdpa", "flex_attention")
EXTRAS = ("softcap", "s_aux", "position_bias")
"""What some families ask of attention, and torch's varlen kernel does not do."""


class _Current(threading.local):
    texts: Texts | None = None


CURRENT = _Current()
"""The texts of the row that this thread computes; None outside of it."""


def _make_mask(kernel: str, /, *args: Any, **kwargs: Any) -> Any:
    """What transformers calls to make a mask: the texts of the row, or outside of `token_states` the kernel's own."""
    if CURRENT.texts is None:
        return ALL_MASK_ATTENTION_FUNCTIONS[kernel](*args, **kwargs)
    return Sight(CURRENT.texts, kwargs["mask_function"])


def _attend(
    kernel: str,
    /,
    module: nn.Module,
    query: Float[Tensor, "batch heads tokens dim"],
    key: Float[Tensor, "batch kv_heads tokens dim"],
    value: Float[Tensor, "batch kv_heads tokens value_dim"],
    attention_mask: Any,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    """What transformers calls to attend; returns (1, tokens, heads, value_dim)."""
    if not isinstance(attention_mask, Sight):
        if CURRENT.texts is not None:
            raise TypeError(f"{type(module).__name__} makes a mask of its own")
        output: tuple[Tensor, Any] = _own(kernel, module)(module, query, key, value, attention_mask, **kwargs)
        return output
    plain = not kwargs.get("dropout") and all(kwargs.get(name) is None for name in EXTRAS)
    if plain and kernel != "eager" and hardware.runs_varlen(query, value) and attention_mask.band is not None:
        return _varlen(query, key, value, attention_mask, kwargs.get("scaling")), None
    if kernel == "flex_attention" or (plain and kernel == "sdpa" and query.is_cuda):
        # One launch for all texts, where text by text would be one for each.
        return _flex(module, query, key, value, attention_mask, **kwargs), None
    return _text_by_text(kernel, module, query, key, value, attention_mask, **kwargs), None


def _own(kernel: str, module: nn.Module) -> Callable[..., Any]:
    """The kernel itself; eager attention is a function in the file of the module."""
    own: Callable[..., Any] = (
        vars(sys.modules[type(module).__module__])["eager_attention_forward"]
        if kernel == "eager"
        else ALL_ATTENTION_FUNCTIONS[kernel]
    )
    return own


def _text_by_text(
    kernel: str, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, sight: Sight, **kwargs: Any
) -> Tensor:
    own, parts, runs = _own(kernel, module), [], sight.texts.runs
    sizes, copied = [count * length for _, count, length in runs], any(count > 1 for _, count, _ in runs)
    # One cut into all runs: of single slices each would send back a gradient as large as the row.
    cuts = (item.split(sizes, dim=2) for item in (query, key, value))
    for (_, count, length), *pieces in zip(runs, *cuts, strict=True):
        if count > 1:
            # (1, heads, count * length, dim) -> (count, heads, length, dim)
            pieces = [item[0].unflatten(1, (count, length)).transpose(0, 1) for item in pieces]
        elif copied:
            # The kernel copies texts that stand side by side. A view of one more would hold on to the whole row too.
            pieces = [item.contiguous() for item in pieces]
        mask: Tensor | None = sight.mask(length)
        if mask is not None and kernel == "eager":
            mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min)
        output = own(module, *pieces, mask, **kwargs)[0]
        parts.append(output.reshape(1, count * length, *output.shape[2:]))
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


def _varlen(query: Tensor, key: Tensor, value: Tensor, sight: Sight, scaling: float | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    texts = sight.texts
    assert sight.band is not None
    query, key, value = (item[0].transpose(0, 1) for item in (query, key, value))
    found = varlen_attn(
        query,
        key,
        value,
        texts.bounds,
        texts.bounds,
        texts.longest,
        texts.longest,
        scale=scaling,
        window_size=sight.band,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(found, Tensor)
    return found[None]


def _flex(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, sight: Sight, **kwargs: Any) -> Tensor:
    output: Tensor = _own("flex_attention", module)(module, query, key, value, sight.block_mask, **kwargs)[0]
    return output


for _kernel in KERNELS:
    AttentionInterface.register(PREFIX + _kernel, partial(_attend, _kernel))
    AttentionMaskInterface.register(PREFIX + _kernel, partial(_make_mask, _kernel))
