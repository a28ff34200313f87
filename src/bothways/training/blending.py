"""Tensors of several models -> one tensor, in float32: weighted sums, and arcs between two of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

PARALLEL = 1e-3
"""Radians. Between tensors that are nearer to one line than this, an arc is the straight way (its error is below
float32's), or, where they point away from each other, could lead any way round."""


def linear(
    tensors: Sequence[Float[Tensor, "*shape"]], weights: Sequence[float], base: Float[Tensor, "*shape"] | None
) -> Float[Tensor, "*shape"]:
    """base + sum of weight * (tensor - base); without a base the weighted sum.

    With weights that sum to 1 the base cancels out, and this is the weighted mean.
    Source: Wortsman et al. 2022 (arXiv 2203.05482), sec. 2; with a base Ilharco et al. 2023 (arXiv 2212.04089), sec. 2.
    """
    merged = torch.zeros_like(tensors[0], dtype=torch.float32) if base is None else base.float().clone()
    for tensor, weight in zip(tensors, weights, strict=True):
        merged += weight * (tensor.float() if base is None else tensor.float() - base.float())
    return merged


def slerp(
    tensors: Sequence[Float[Tensor, "*shape"]], weights: Sequence[float], base: Float[Tensor, "*shape"] | None
) -> Float[Tensor, "*shape"]:
    """Along the arc from the first tensor to the second, from there to the third, and so on: depends on the order.

    Each step goes as far as the new tensor's share of the weights so far, so that with a single weight above 0 its
    tensor comes out. With a base the arcs are those of the differences to it, which is added again.
    Source: Shoemake 1985, SIGGRAPH 19(3), sec. 3.3, on flattened tensors, their lengths kept in.
    """
    start = torch.zeros_like(tensors[0], dtype=torch.float32) if base is None else base.float()
    merged, so_far = tensors[0].float() - start, weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        so_far += weight
        merged = arc(merged, tensor.float() - start, weight / so_far if so_far else 0.0)
    return start + merged


def arc(first: Float[Tensor, "*shape"], second: Float[Tensor, "*shape"], t: float) -> Float[Tensor, "*shape"]:
    """What stands at `t` (0: the first, 1: the second) of the arc between two tensors, taken as vectors.

    The straight way between those that are parallel, antiparallel or zero.
    """
    sizes = first.norm(), second.norm()
    if t in (0.0, 1.0) or not min(sizes):
        return torch.lerp(first, second, t)
    one, other = first / sizes[0], second / sizes[1]
    # Exact near 0 and pi too, where the arc cosine of the product is not.
    angle = 2 * torch.atan2((one - other).norm(), (one + other).norm())
    if torch.sin(angle) < PARALLEL:
        return torch.lerp(first, second, t)
    return (torch.sin((1 - t) * angle) * first + torch.sin(t * angle) * second) / torch.sin(angle)
