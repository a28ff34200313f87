"""What is put around a loss, or beside it, to shape the vectors: prefixes that stand alone, and room between rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bothways.training.losses.unit import unit


def matryoshka(
    loss: Callable[[Tensor], Tensor],
    vectors: Float[Tensor, "rows dim"],
    dims: Sequence[int],
    weights: Sequence[float] | None = None,
) -> Float[Tensor, ""]:
    """Sum of `loss` over the first `dims[k]` columns of the vectors, times `weights[k]` (all 1 if not given).

    The losses here look at directions only, so a prefix counts as if it were normalised again. The full width is
    trained only if it is one of `dims`.

    Raises ValueError for no dims, a dim that is not between 1 and the width, or another number of weights.
    Source: Kusupati et al. 2022 (Matryoshka representation learning, arXiv 2205.13147), eq. 1.
    """
    width = vectors.shape[1]
    shares = [1.0] * len(dims) if weights is None else list(weights)
    if not dims:
        raise ValueError("matryoshka: no dims. Name at least one number of columns to keep.")
    if len(shares) != len(dims):
        raise ValueError(f"matryoshka: {len(dims)} dims, but {len(shares)} weights. Give one weight for each.")
    for dim in dims:
        if not 1 <= dim <= width:
            raise ValueError(f"matryoshka: dim {dim} of vectors with {width} columns. Use dims from 1 to {width}.")
    return torch.stack([share * loss(vectors[:, :dim]) for dim, share in zip(dims, shares, strict=True)]).sum()


def spread_out(
    vectors: Float[Tensor, "rows dim"], *, ignore: Bool[Tensor, "rows rows"] | None = None
) -> Float[Tensor, ""]:
    """Mean squared cosine of two different rows, in float32; 0 if there are no two.

    Vectors that are spread evenly over the sphere have 1 / dim. Rows that belong together (a query and its document,
    a text twice) should not be pushed apart: give queries and documents in calls of their own and add the results, as
    the source does, or leave those pairs out where `ignore` is true.

    Source: EmbeddingGemma (Schechter Vera et al. 2025, arXiv 2509.20354), which keeps the second moment of Zhang et al.
    2017 (global orthogonal regularisation, arXiv 1708.06320).
    """
    rows = unit(vectors)
    out = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    out = out if ignore is None else out | ignore
    return (rows @ rows.T).square().masked_fill(out, 0).sum() / (~out).sum().clamp(min=1)
