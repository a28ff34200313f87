"""Dropout for the length of a stage: in attention where the architecture has a place for it, else on the embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

WITHOUT = ("flex_attention",)
"""Attention implementations that refuse dropout."""


@dataclass
class Dropout:
    """What dropout there is; `embeddings` may be changed while it lasts."""

    rate: float | None
    """In attention; None: as the model's config says."""
    layers: int
    """Attention layers that have `rate` now."""
    embeddings: float = 0.0
    """On the output of the input embedding."""
    why: str = ""
    """Why it is on the embeddings, where that is not what was asked for."""

    def __str__(self) -> str:
        said = []
        if self.rate is None:
            said.append("dropout as the model's config says")
        elif not self.why:
            said.append(f"dropout {self.rate:g} in {self.layers} attention layers")
        if self.embeddings:
            said.append(f"dropout {self.embeddings:g} on the embeddings{self.why and ': '}{self.why}")
        return ", ".join(said)


@contextmanager
def dropout_of(model: PreTrainedModel, rate: float | None, embeddings: float | None = None) -> Iterator[Dropout]:
    """Set the rate of attention dropout, or leave it where `rate` is None; undone at the end.

    `embeddings` is the rate on the input embeddings in training mode; None: `rate`, where the model's attention has no
    place for it.
    """
    places = [] if rate is None else [*_attention_places(model)]
    done = Dropout(rate, len(places), embeddings or 0.0)
    if rate and embeddings is None and not places:
        done.embeddings, done.why = rate, "its attention has no place for it"
    before = [getattr(owner, name) for owner, name in places]
    # A function, which a copy of the model shares with it: there too the rate can be changed later.
    hook = model.get_input_embeddings().register_forward_hook(
        lambda module, _, output: _dropped(output, done.embeddings, module.training)
    )
    for owner, name in places:
        setattr(owner, name, rate)
    try:
        yield done
    finally:
        for (owner, name), value in zip(places, before, strict=True):
            setattr(owner, name, value)
        hook.remove()


def _attention_places(model: PreTrainedModel) -> Iterator[tuple[Any, str]]:
    """Where attention modules keep the rate for their weights: a number, or a Dropout module named for attention."""
    if model.config._attn_implementation in WITHOUT:
        return
    for module in model.modules():
        if "attention" not in type(module).__name__.lower():
            continue
        for name, value in vars(module).items():
            # Configs write 0 for 0.0; another dropout of these modules is hidden_dropout or residual_dropout.
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if number and (name.startswith("dropout") or ("dropout" in name and "att" in name)):
                yield module, name
        for name, child in module.named_children():
            if isinstance(child, nn.Dropout) and "att" in name:
                yield child, "p"


def _dropped(output: Tensor, rate: float, training: bool) -> Tensor:
    return F.dropout(output, rate, training) if rate else output
