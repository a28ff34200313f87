"""Linear layers in 4 bits for the length of a stage (QLoRA), while their own weights wait on the CPU, unchanged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bothways.errors import ConfigError

WAY_OUT = 'Use tune="lora", which needs the weights in memory as they are.'


@contextmanager
def four_bit(
    model: PreTrainedModel, layers: Mapping[str, nn.Module], dtype: torch.dtype
) -> Iterator[dict[str, nn.Module]]:
    """`layers` of the model are replaced by NF4 ones with double quantisation that compute in `dtype`.

    Yields the layers themselves, by name; at the end they are in their places again. Biases stay as they are.
    Raises ConfigError if bitsandbytes is missing or does not compute on the model's device.
    Source: Dettmers et al. 2023 (arXiv 2305.14314), sec. 3.
    """
    device, kept = model.device, dict(layers)
    _try(device, dtype)
    try:
        for name, layer in kept.items():
            model.set_submodule(name, _packed(layer, dtype, device))
            weight = layer.get_parameter("weight")
            weight.data = weight.data.cpu()
        yield kept
    finally:
        for name, layer in kept.items():
            weight = layer.get_parameter("weight")
            weight.data = weight.data.to(device)
            model.set_submodule(name, layer)


def _packed(layer: nn.Module, dtype: torch.dtype, device: torch.device) -> nn.Module:
    from bitsandbytes.nn.modules import Linear4bit, Params4bit

    own, bias = layer.get_parameter("weight"), getattr(layer, "bias", None)
    matrix = own.data.T.contiguous() if isinstance(layer, Conv1D) else own.data
    with torch.device("meta"):
        packed: Any = Linear4bit(matrix.shape[1], matrix.shape[0], bias=False, compute_dtype=dtype)
    packed.weight = Params4bit(matrix, requires_grad=False, compress_statistics=True, quant_type="nf4", module=packed)
    packed.bias = bias
    # On CPU it would pack the weight anew for inference whenever it is measured, and then trains no more.
    packed.support_avx512bf16_for_cpu = False
    moved: nn.Module = packed.to(device)
    return moved


def _try(device: torch.device, dtype: torch.dtype) -> None:
    try:
        import bitsandbytes  # noqa: F401 (to say at once that it is missing)
    except ImportError as error:
        raise ConfigError(f'tune="qlora" needs bitsandbytes: pip install "bothways[qlora]". {WAY_OUT}') from error
    try:
        numbers = torch.ones((2, 64), dtype=dtype, device=device, requires_grad=True)
        _packed(nn.Linear(64, 3, device=device), dtype, device)(numbers).sum().backward()
    except Exception as error:  # whatever a kernel that is not there raises
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f'tune="qlora": bitsandbytes computes no 4-bit layer on {device.type} here ({reason}). {WAY_OUT}'
        ) from error
