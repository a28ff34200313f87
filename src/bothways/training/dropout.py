"""Dropout for the length of a stage: in attention where the architecture has a place for it, else on the embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel


@contextmanager
def dropout_of(model: PreTrainedModel, rate: float | None) -> Iterator[str]:
    """Set the rate of attention dropout, or leave it where `rate` is None; says what was done. Undone at the end."""
    if rate is None:
        yield "dropout as the model's config says"
        return
    places = [*_attention_places(model)]
    before = [getattr(owner, name) for owner, name in places]
    hook = None
    if not places:
        hook = model.get_input_embeddings().register_forward_hook(
            lambda module, _, output: _dropped(output, rate, module.training)
        )
    for owner, name in places:
        setattr(owner, name, rate)
    try:
        where = (
            f"in {len(places)} attention layers" if places else "on the embeddings: its attention has no place for it"
        )
        yield f"dropout {rate:g} {where}"
    finally:
        for (owner, name), value in zip(places, before, strict=True):
            setattr(owner, name, value)
        if hook is not None:
            hook.remove()


def _attention_places(model: nn.Module) -> Iterator[tuple[Any, str]]:
    """Where attention modules keep the rate for their weights: a number, or a Dropout module named for attention."""
    for module in model.modules():
        if "attention" not in type(module).__name__.lower():
            continue
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                yield module, name
        for name, child in module.named_children():
            if isinstance(child, nn.Dropout) and "att" in name:
                yield child, "p"


def _dropped(output: Tensor, rate: float, training: bool) -> Tensor:
    return F.dropout(output, rate, training)
