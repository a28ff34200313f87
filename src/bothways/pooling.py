"""Hidden states of the tokens -> one vector per text. Pure functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bothways.errors import ConfigError

Pooling = Literal["mean", "weighted_mean", "last", "cls"]


def mean_pool(
    hidden: Float[Tensor, "batch tokens dim"], keep: Bool[Tensor, "batch tokens"]
) -> Float[Tensor, "batch dim"]:
    """Mean over the kept tokens."""
    weights = keep.to(hidden.dtype)
    return _weighted(hidden, weights)


def weighted_mean_pool(
    hidden: Float[Tensor, "batch tokens dim"], keep: Bool[Tensor, "batch tokens"]
) -> Float[Tensor, "batch dim"]:
    """Mean over the kept tokens, the first with weight 1, the next with 2, and so on.

    Source: Muennighoff 2022 (SGPT, arXiv 2202.08904), eq. 2, counted over the pooled span as LLM2Vec does.
    """
    weights = keep.cumsum(dim=1).to(hidden.dtype) * keep
    return _weighted(hidden, weights)


def last_pool(
    hidden: Float[Tensor, "batch tokens dim"], keep: Bool[Tensor, "batch tokens"]
) -> Float[Tensor, "batch dim"]:
    """The last kept token."""
    positions = torch.arange(keep.shape[1], device=keep.device)
    return _row(hidden, (positions * keep).amax(dim=1))


def cls_pool(
    hidden: Float[Tensor, "batch tokens dim"], keep: Bool[Tensor, "batch tokens"]
) -> Float[Tensor, "batch dim"]:
    """The first kept token."""
    return _row(hidden, keep.int().argmax(dim=1))


def _weighted(hidden: Tensor, weights: Tensor) -> Tensor:
    total = weights.sum(dim=1, keepdim=True).clamp(min=1e-9)
    return torch.einsum("btd,bt->bd", hidden, weights / total)


def _row(hidden: Tensor, positions: Tensor) -> Tensor:
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), positions]


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": mean_pool,
    "weighted_mean": weighted_mean_pool,
    "last": last_pool,
    "cls": cls_pool,
}


def pool(
    hidden: Float[Tensor, "batch tokens dim"], keep: Bool[Tensor, "batch tokens"], how: str
) -> Float[Tensor, "batch dim"]:
    """One vector per row by the named pooling, in float32 or better. Raises ConfigError for an unknown name."""
    if how not in POOLINGS:
        raise ConfigError(f'pooling="{how}" is not known. Use one of {", ".join(POOLINGS)}.')
    return POOLINGS[how](hidden.to(torch.promote_types(hidden.dtype, torch.float32)), keep)
