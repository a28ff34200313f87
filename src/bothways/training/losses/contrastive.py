"""InfoNCE: which rows of a batch a query, or a document, is told apart from, and how sharply."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial, reduce

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from bothways.training.losses.unit import unit

DIRECTIONS = ("q->d", "d->q", "q->q", "d->d")
"""Who is compared with whom. The first has the positive pairs and is always there."""
LARGEST_SCALE = 100.0
"""Of 1 / temperature when it is learned (CLIP)."""


def info_nce(
    queries: Float[Tensor, "queries dim"],
    documents: Float[Tensor, "documents dim"],
    *,
    temperature: float | Float[Tensor, ""],
    ignore: Bool[Tensor, "queries documents"] | None = None,
    directions: Sequence[str] = ("q->d",),
    joint: bool = False,
    margin: float | None = None,
    in_batch: bool = True,
    owner: Int[Tensor, " documents"] | None = None,
) -> Float[Tensor, ""]:
    """Mean cross-entropy, in nats, of each query against its own document, every other row being a negative.

    `documents[i]` belongs to `queries[i]`; the rows after them are hard negatives. Cosine similarities, in float32,
    are divided by `temperature`, which may be a tensor that is trained. What is a negative of query i:
    - `"q->d"`: every document but its own. With `in_batch=False` only its own hard negatives (a query without any then
      counts 0); `owner` says whose each document is, and has i at place i.
    - `"q->q"`: every other query. `"d->d"`: its document beside those of other `owner`s. Both in the same softmax.
    - `"d->q"`: the mean of that loss and of a second one, its document against all queries. `joint=True`: the second
      one's similarities, the positive again among them, stand in the first one's softmax instead.

    Where `ignore` is true a document says the same as the positive: it is no negative of that query or that positive,
    the query none of it, and two queries with such a document none of one another. `margin`: nothing that is more
    similar than query and positive by more than `margin` is a negative either (in cosines; Qwen3-Embedding has 0.1,
    numbers below 0 mask more). A query's own document is never masked.
    Raises ValueError for fewer documents than queries, an unknown direction or none "q->d", hard negatives without the
    `owner` they need, and combinations that leave nothing to compare.
    Source: van den Oord et al. 2018 (arXiv 1807.03748), eq. 4; LLM2Vec (arXiv 2404.05961), sec. 2.3. All directions,
    `joint`: Li et al. 2023 (GTE, arXiv 2308.03281), improved contrastive loss. `margin`: Zhang et al. 2025
    (Qwen3-Embedding, arXiv 2506.05176); Solatorio 2024 (GISTEmbed, arXiv 2402.16829) with the model as its own guide.
    """
    count = len(queries)
    _check(count, len(documents), directions, joint, in_batch, owner)
    asked, found = unit(queries), unit(documents)
    cosines = asked @ found.T
    places = torch.arange(count, device=cosines.device)
    own = torch.eye(*cosines.shape, dtype=torch.bool, device=cosines.device)
    mine = own if owner is None else own | (owner.to(own.device) == places[:, None])
    same = own[:, :count] if ignore is None else own[:, :count] | ignore[:, :count]
    bar = None if margin is None else cosines.diagonal()[:, None] + margin
    scaled = partial(_logits, temperature=temperature, bar=bar)

    logits = [scaled(cosines, ignore, None if in_batch else ~mine, keep=own)]
    if "q->q" in directions:
        logits.append(scaled(asked @ asked.T, same | same.T))
    if "d->d" in directions:
        logits.append(scaled(found[:count] @ found.T, mine, ignore))
    if "d->q" not in directions:
        return _softmax_loss(logits, places)
    backwards = scaled(cosines[:, :count].T, same.T, keep=own[:, :count])
    if joint:
        return _softmax_loss([*logits, backwards], places)
    return (_softmax_loss(logits, places) + _softmax_loss([backwards], places)) / 2


class LearnableTemperature(nn.Module):
    """A temperature that is trained: calling the module gives it. The parameter is the logarithm of its inverse.

    1 / temperature stays at or below 100. Raises ValueError for a `start` below 0.01.
    Source: Radford et al. 2021 (CLIP, arXiv 2103.00020), sec. 2.5.
    """

    _keep_in_fp32_modules_strict = ("log_scale",)
    """As transformers' models say what they never compute below float32."""

    def __init__(self, start: float = 0.05) -> None:
        super().__init__()
        if not start >= 1 / LARGEST_SCALE:
            raise ValueError(f"LearnableTemperature: start={start}, but it stays at or above {1 / LARGEST_SCALE:g}.")
        self.log_scale = nn.Parameter(torch.tensor(-math.log(start)))

    def forward(self) -> Float[Tensor, ""]:
        """The temperature, with a gradient."""
        # The parameter itself, not what is made of it: beyond a clamp no gradient would bring it back.
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(LARGEST_SCALE))
        return torch.exp(-self.log_scale)


def _logits(
    similarities: Tensor,
    *out: Tensor | None,
    temperature: float | Tensor,
    bar: Tensor | None,
    keep: Tensor | None = None,
) -> Tensor:
    """Similarities / temperature, -inf where any of `out` is true or one is above its row's bar, but not at `keep`."""
    masks = [mask for mask in (*out, None if bar is None else similarities > bar) if mask is not None]
    logits = similarities / temperature
    if not masks:
        return logits
    masked = reduce(torch.logical_or, masks)
    return logits.masked_fill(masked if keep is None else masked & ~keep, -torch.inf)


def _softmax_loss(logits: list[Tensor], places: Tensor) -> Tensor:
    """Cross-entropy of one softmax over all of them; the positives are in the first."""
    # A single matrix stays as it is: a copy would be as large as the batch squared.
    return F.cross_entropy(logits[0] if len(logits) == 1 else torch.cat(logits, dim=1), places)


def _check(
    queries: int, documents: int, directions: Sequence[str], joint: bool, in_batch: bool, owner: Tensor | None
) -> None:
    if documents < queries:
        raise ValueError(f"info_nce: {queries} queries need as many documents, got {documents}.")
    for name in directions:
        if name not in DIRECTIONS:
            raise ValueError(f'info_nce: unknown direction "{name}". Use some of {", ".join(DIRECTIONS)}.')
    if "q->d" not in directions:
        raise ValueError(f'info_nce: directions={tuple(directions)} lack "q->d", which has the positive pairs. Add it.')
    if joint and "d->q" not in directions:
        raise ValueError('info_nce: joint=True is about "d->q", which is not among the directions. Add it.')
    if not in_batch and len(set(directions)) > 1:
        raise ValueError(
            f"info_nce: directions={tuple(directions)} compare examples of a batch with one another, but "
            'in_batch=False. Leave "q->d" alone.'
        )
    if owner is not None and len(owner) != documents:
        raise ValueError(f"info_nce: {documents} documents, but {len(owner)} owners. Give the query of every document.")
    if owner is None and documents > queries and ("d->d" in directions or not in_batch):
        what = '"d->d"' if in_batch else "in_batch=False"
        raise ValueError(
            f"info_nce: {what} asks whose the {documents - queries} hard negatives are. Give `owner`, the number of "
            "the query that each document belongs to."
        )
