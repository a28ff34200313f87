"""Pairs with a grade between "nothing in common" and "the same": losses that use it as it is."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from bothways.training.losses.unit import unit


def cosent(
    left: Float[Tensor, "pairs dim"],
    right: Float[Tensor, "pairs dim"],
    scores: Float[Tensor, " pairs"],
    *,
    temperature: float | Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """How far the cosines of the pairs are from the order of their scores: log(1 + sum of exp(cos j - cos i)).

    The sum is over all i, j where `scores[i]` is above `scores[j]`; cosines, in float32, are divided by `temperature`
    first. Only the order of the scores counts, in any unit; where all are equal the loss is 0. In nats.

    Raises ValueError unless every pair has two vectors and a score.
    Source: Huang et al. 2024 (CoSENT, IEEE/ACM TASLP, doi 10.1109/TASLP.2024.3402087).
    """
    if not len(left) == len(right) == len(scores):
        raise ValueError(
            f"cosent: {len(left)} left and {len(right)} right vectors with {len(scores)} scores. "
            "Give two vectors and one score for every pair."
        )
    cosines = (unit(left) * unit(right)).sum(dim=1) / temperature
    above = scores[:, None] > scores
    wrong = (cosines - cosines[:, None]).masked_fill(~above, -torch.inf)
    return F.pad(wrong.flatten(), (1, 0)).logsumexp(dim=0)


def bixse(
    queries: Float[Tensor, "queries dim"],
    documents: Float[Tensor, "documents dim"],
    scores: Float[Tensor, " queries"],
    *,
    temperature: float | Float[Tensor, ""],
    bias: float | Float[Tensor, ""],
    ignore: Bool[Tensor, "queries documents"] | None = None,
) -> Float[Tensor, ""]:
    """Binary cross-entropy, in nats, of every query with every document: summed over documents, mean over queries.

    The probability of a pair is sigmoid(cosine / temperature + bias), in float32; either number may be a tensor that is
    trained. The label of `queries[i]` with `documents[i]` is `scores[i]`, between 0 and 1; the label of any other pair
    is 0, so rows after those documents are hard negatives. Where `ignore` is true a pair is left out; a query's own
    never is. With few positives among many pairs `bias` starts well below 0 (SigLIP: -10 at temperature 0.1).

    Raises ValueError for fewer documents than queries, another number of scores than of queries, or a score outside
    0 to 1.
    Source: Tsirigotis et al. 2025 (BiXSE, arXiv 2508.06781); the sum over a batch is divided by its queries as in Zhai
    et al. 2023 (SigLIP, arXiv 2303.15343), sec. 3.2.
    """
    count = len(queries)
    if len(documents) < count or len(scores) != count:
        raise ValueError(
            f"bixse: {count} queries need a score each and as many documents or more, got {len(scores)} scores and "
            f"{len(documents)} documents."
        )
    # Tensors without content, on which the memory of a step is counted, have no values to look at.
    if not scores.is_meta and not bool(((scores >= 0) & (scores <= 1)).all()):
        raise ValueError(
            f"bixse: scores lie between {float(scores.min()):g} and {float(scores.max()):g}, but they are labels from "
            "0 to 1. Divide them by the largest grade."
        )
    logits = unit(queries) @ unit(documents).T / temperature + bias
    own = torch.eye(*logits.shape, dtype=torch.bool, device=logits.device)
    labels = own * scores.to(logits.dtype)[:, None]
    losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    if ignore is not None:
        losses = losses.masked_fill(ignore & ~own, 0)
    return losses.sum() / count
