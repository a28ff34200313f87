"""Weights that compute in one number format and are trained in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WorkingWeights:
    """A module's floating-point weights in `dtype` for the length of a stage; what is trained has a float32 master.

    On CPU this is a third faster than autocast, which casts every weight in every forward pass. Tied weights stay
    tied. `restore` puts the trained values back in each weight's own format.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        self._own: list[tuple[nn.Parameter, Tensor]] = []
        self._working: dict[str, nn.Parameter] = {}
        self.masters: dict[str, nn.Parameter] = {}
        for name, weight, target in _targets(module, dtype):
            self._own.append((weight, weight.data))
            weight.data = weight.data.to(target)
            if not weight.requires_grad:
                continue
            self._working[name] = weight
            in_place = target == torch.float32
            self.masters[name] = weight if in_place else nn.Parameter(self._own[-1][1].float())

    def collect(self) -> None:
        """Add the gradients of one backward pass to those of the masters."""
        for name, master in self.masters.items():
            weight = self._working[name]
            if weight is master or weight.grad is None:
                continue
            grad = weight.grad.float()
            master.grad = grad if master.grad is None else master.grad.add_(grad)
            weight.grad = None

    def drop(self) -> None:
        """Forget all gradients, also those of a backward pass that did not end."""
        for name, master in self.masters.items():
            master.grad = self._working[name].grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the masters into the weights that compute."""
        apart = [name for name, master in self.masters.items() if self._working[name] is not master]
        if apart:
            torch._foreach_copy_([self._working[name] for name in apart], [self.masters[name] for name in apart])

    def restore(self) -> None:
        """Every weight in its own number format again, with its trained value."""
        trained = {id(weight): self.masters[name] for name, weight in self._working.items()}
        for weight, own in self._own:
            weight.grad = None
            master = trained.get(id(weight))
            weight.data = own if master is None else master.data.to(own.dtype)


@contextmanager
def computing_in(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Within it the module computes in the number formats in which a stage would train it; nothing is trained here."""
    own = [(weight, weight.data, target) for _, weight, target in _targets(module, dtype)]
    for weight, data, target in own:
        weight.data = data.to(target)
    try:
        yield
    finally:
        for weight, data, _ in own:
            weight.data = data


def _targets(module: nn.Module, dtype: torch.dtype) -> Iterator[tuple[str, nn.Parameter, torch.dtype]]:
    """Every floating-point weight, and what it computes in."""
    parts = kept_in_float32(module)
    for name, weight in module.named_parameters():
        if weight.is_floating_point():
            yield name, weight, torch.float32 if any(part in name for part in parts) else dtype


def kept_in_float32(module: nn.Module) -> set[str]:
    """Parts of names that the architectures of transformers never compute below float32."""
    found: set[str] = set()
    for child in module.modules():
        found.update(getattr(child, "_keep_in_fp32_modules_strict", None) or ())
    return found
