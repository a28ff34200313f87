"""Queries and documents -> the loss of one batch, in forward passes that fit the memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from bothways.encoder import Encoder
from bothways.errors import TrainingError
from bothways.text import TextIds
from bothways.training.loop import Cut, Part, Place
from bothways.training.losses import info_nce
from bothways.training.randomness import seed_everything
from bothways.training.settings import Contrastive


@dataclass(frozen=True)
class Pairs:
    """`documents[i]` belongs to `queries[i]`, the documents after them are hard negatives. `ignore`: see `info_nce`."""

    queries: list[TextIds]
    documents: list[TextIds]
    ignore: Bool[Tensor, "queries documents"]

    @property
    def rows(self) -> list[TextIds]:
        """Queries, then documents."""
        return [*self.queries, *self.documents]

    def loss(self, vectors: Float[Tensor, "rows dim"], temperature: float) -> Float[Tensor, ""]:
        """info_nce of the vectors of queries and documents, in that order."""
        count = len(self.queries)
        ignore = self.ignore.to(vectors.device)
        return info_nce(vectors[:count], vectors[count:], temperature=temperature, ignore=ignore)


def embed_in_groups(
    encoder: Encoder, rows: Sequence[TextIds], cut: Cut, seed: Sequence[int]
) -> Float[Tensor, "rows dim"]:
    """Vectors of the rows, in their order, through forward passes over the groups that `cut` makes of their lengths.

    Dropout of each pass is seeded by `seed` and its number, so that the same call gives the same vectors.
    """
    groups = cut([len(row) for row in rows])
    vectors = torch.cat([_embed(encoder, rows, group, (*seed, number)) for number, group in enumerate(groups)])
    order = torch.tensor([position for group in groups for position in group], device=vectors.device)
    return vectors[order.argsort()]


def contrastive_parts(
    stage: str, encoder: Encoder, pairs: Pairs, settings: Contrastive, seed: Sequence[int], place: Place, cut: Cut
) -> Iterator[Part]:
    """The batch's loss in one part, or with `settings.grad_cache` in one part per forward pass.

    Raises TrainingError on several processes: each would see its own negatives only.
    Source of the parts: Gao et al. 2021 (GradCache, arXiv 2101.06983); the second pass repeats the first one's dropout.
    """
    if place.processes > 1:
        raise TrainingError(
            f"{stage} runs on one process, but this is one of {place.processes}: negatives are not yet shared between "
            "them. Start it without a launcher."
        )
    rows = pairs.rows
    groups = cut([len(row) for row in rows])
    if not settings.grad_cache or len(groups) == 1:
        vectors = embed_in_groups(encoder, rows, cut, seed)
        yield Part(pairs.loss(vectors, settings.temperature), sum(len(row) for row in rows))
        return
    with torch.no_grad():
        vectors = embed_in_groups(encoder, rows, cut, seed)
    vectors.requires_grad_()
    loss = pairs.loss(vectors, settings.temperature)
    (slopes,) = torch.autograd.grad(loss, vectors)
    for number, group in enumerate(groups):
        # Its gradient is what the loss sends through these vectors; the loss's value stands in the first part.
        stand_in = (_embed(encoder, rows, group, (*seed, number)) * slopes[group]).sum()
        value = loss.detach() if number == 0 else torch.zeros_like(stand_in)
        yield Part(stand_in + (value - stand_in.detach()), sum(len(rows[i]) for i in group))


@torch.no_grad()
def contrastive_scores(
    encoder: Encoder, batches: Iterable[Pairs], settings: Contrastive, seed: Sequence[int], cut: Cut
) -> dict[str, float]:
    """Mean loss over the queries, and the share of them whose own document is the most similar; empty without any."""
    loss, first, count = 0.0, 0, 0
    for number, pairs in enumerate(batches):
        vectors = F.normalize(embed_in_groups(encoder, pairs.rows, cut, (*seed, number)), dim=1)
        size = len(pairs.queries)
        loss += float(pairs.loss(vectors, settings.temperature)) * size
        scores = vectors[:size] @ vectors[size:].T
        rivals = scores.masked_fill(pairs.ignore.to(scores.device), -torch.inf)
        first += int((scores.diagonal() > rivals.amax(dim=1)).sum())
        count += size
    return {"loss": loss / count, "accuracy": first / count} if count else {}


def _embed(encoder: Encoder, rows: Sequence[TextIds], group: Sequence[int], seed: Sequence[int]) -> Tensor:
    seed_everything(*seed)
    return encoder.embed([rows[i] for i in group])
