"""What a computation holds in memory and how much it computes: counted on tensors that have a size but no content."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

GRADIENTS = "gradients"
HEAP_BLOCK = 2**25
"""Bytes from which glibc takes a block from the system and gives it back at once; smaller ones leave holes."""
FLASH_HEAD = 256
"""Widest head that the fused attention kernels take."""


class Live(TorchDispatchMode):
    """Bytes of the tensors that are alive while it is on, without the parameters of `module`, which were there before.

    Each storage counts once, however many tensors share it, under the `phase` in which it was made, or under
    "gradients" once it is the gradient of a parameter. `peak` is the largest sum there was, by phase; `flops` the
    multiplications and additions so far; `heap` the bytes of that sum in blocks that a heap holds.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.phase = ""
        self.peak: Counter[str] = Counter()
        self.flops = self.heap = self._in_heap = 0
        self._formulas = _formulas()
        self._now: Counter[str] = Counter()
        self._most = 0
        self._alive: dict[int, tuple[str, int]] = {}
        self._watches: dict[int, weakref.ref[Any]] = {}
        weights = [*module.parameters(), *module.buffers()]
        self._before = {weight.untyped_storage()._cdata for weight in weights}
        self._hooks = [
            weight.register_post_accumulate_grad_hook(self._is_gradient) for weight in weights if weight.requires_grad
        ]

    def __exit__(self, *error: object) -> None:
        """Stops counting, for good."""
        for hook in self._hooks:
            hook.remove()
        super().__exit__(*error)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Computes, and notes what is new."""
        output = function(*args, **(kwargs or {}))
        formula = self._formulas.get(function._overloadpacket)
        if formula is not None:
            # Not torch's FlopCounterMode: where layers are computed again, it keeps all of them alive.
            self.flops += formula(*args, **(kwargs or {}), out_val=output)
        for item in tree_leaves(output):
            if isinstance(item, Tensor):
                self._note(item.untyped_storage())
        return output

    def _note(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._alive or key in self._before:
            return
        self._alive[key] = (self.phase, storage.nbytes())
        self._now[self.phase] += storage.nbytes()
        self._in_heap += _in_heap(storage.nbytes())
        self._watches[key] = weakref.ref(storage, partial(self._gone, key))
        if self._now.total() > self._most:
            self._most, self.peak, self.heap = self._now.total(), self._now.copy(), self._in_heap

    def _gone(self, key: int, _: object) -> None:
        del self._watches[key]
        phase, size = self._alive.pop(key)
        self._now[phase] -= size
        self._in_heap -= _in_heap(size)

    def _is_gradient(self, weight: Tensor) -> None:
        gradient = weight.grad
        key = None if gradient is None else gradient.untyped_storage()._cdata
        if key not in self._alive:
            return
        phase, size = self._alive[key]
        self._alive[key] = (GRADIENTS, size)
        self._now[phase] -= size
        self._now[GRADIENTS] += size


def _in_heap(size: int) -> int:
    return size if size < HEAP_BLOCK else 0


def _formulas() -> dict[Any, Callable[..., int]]:
    """FLOPs by operation, from torch, with the CPU's attention kernel, which it leaves out."""
    aten = torch.ops.aten
    found: dict[Any, Callable[..., int]] = dict(flop_registry)
    for name in ("_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_backward"):
        on_cpu = name.replace("attention", "attention_for_cpu")
        found[getattr(aten, on_cpu)] = found[getattr(aten, name)]
    return found


class Kernels(TorchFunctionMode):
    """Attention and dropout of meta tensors by the kernels that a device of this type would take.

    Left alone, tensors without content take the plain formulas, which keep what fused kernels do not.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self._attend = _attend_on_cpu if device == "cpu" else _attend_on_accelerator
        self._fused_dropout = device != "cpu"

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The other kernel where there is one, else what was called."""
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            found = self._attend(*args, **kwargs)
            if found is not None:
                return found
        if function is F.dropout and self._fused_dropout:
            return _dropout(*args, **kwargs)
        return function(*args, **kwargs)


def _dropout(item: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(item, p, True)[0] if training and p > 0 else item


def _attend_on_cpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    # With dropout, torch has no fused kernel on CPU.
    if dropout_p > 0 or query.shape[-1] != value.shape[-1]:
        return None
    kernel: Callable[..., Any] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    output: Tensor = kernel(query, key, value, 0.0, is_causal, attn_mask=_additive(attn_mask, query), scale=scale)[0]
    return output


def _attend_on_accelerator(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    output: Tensor
    narrow = query.shape[-1] == value.shape[-1] <= FLASH_HEAD
    if attn_mask is None and narrow and query.dtype != torch.float32:
        flash: Callable[..., Any] = torch.ops.aten._scaled_dot_product_flash_attention
        output = flash(query, key, value, dropout_p, is_causal, scale=scale)[0]
        return output
    if query.shape[1] != key.shape[1]:
        # The kernel that takes masks and float32 takes no grouped heads.
        return None
    efficient: Callable[..., Any] = torch.ops.aten._scaled_dot_product_efficient_attention
    bias = _additive(attn_mask, query)
    if bias is not None:
        bias = bias.expand(*query.shape[:3], key.shape[2])
    output = efficient(query, key, value, bias, True, dropout_p, is_causal, scale=scale)[0]
    return output


def _additive(mask: Tensor | None, query: Tensor) -> Tensor | None:
    """What the kernels make of a mask of booleans."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, -torch.inf)


@contextmanager
def counted(module: nn.Module, device: str) -> Iterator[Live]:
    """Counts what is computed inside, on meta tensors, as a device of this type would compute it."""
    with Live(module) as live, Kernels(device):
        yield live
