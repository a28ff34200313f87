"""Queries and documents -> the loss of one batch, in forward passes that fit the memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from bothways.encoder import Encoder
from bothways.text import TextIds
from bothways.training.gradcache import embed_all, gradcache
from bothways.training.losses import info_nce
from bothways.training.processes import Place
from bothways.training.settings import Contrastive
from bothways.training.task import Cut, Part


@dataclass(frozen=True)
class Pairs:
    """`documents[i]` belongs to `queries[i]`, the documents after them are hard negatives. `ignore`: see `info_nce`."""

    queries: list[TextIds]
    documents: list[TextIds]
    ignore: Bool[Tensor, "queries documents"]
    owners: list[int]
    """Of each document, the number of the query that it came with."""

    @property
    def rows(self) -> list[TextIds]:
        """Queries, then documents."""
        return [*self.queries, *self.documents]

    def apart(self, blocks: int) -> Pairs:
        """The same where the examples are dealt to so many blocks, and a document is a negative within its own alone.

        Which block an example is in depends on its place in the batch, not on where its rows are embedded.
        """
        query = torch.arange(len(self.queries)) % blocks
        document = torch.tensor(self.owners) % blocks
        return replace(self, ignore=self.ignore | (query[:, None] != document[None, :]))

    def loss(self, vectors: Float[Tensor, "rows dim"], temperature: float) -> Float[Tensor, ""]:
        """info_nce of the vectors of queries and documents, in that order."""
        count = len(self.queries)
        ignore = self.ignore.to(vectors.device)
        return info_nce(vectors[:count], vectors[count:], temperature=temperature, ignore=ignore)


def contrastive_parts(
    encoder: Encoder,
    pairs: Pairs,
    settings: Contrastive,
    seed: Sequence[int],
    place: Place,
    cut: Cut,
    *,
    across: bool = True,
) -> Iterator[Part]:
    """This process's parts of the batch's loss (see `gradcache`), all of whose documents are negatives of a query.

    Without `across` those of as many blocks as there are processes are not, so that each has a batch of its own.
    """
    pairs = pairs if across else pairs.apart(place.processes)
    return gradcache(
        encoder,
        pairs.rows,
        lambda vectors: pairs.loss(vectors, settings.temperature),
        seed=seed,
        place=place,
        cut=cut,
        alive=0 if settings.grad_cache else math.inf,
    )


@torch.no_grad()
def contrastive_scores(
    encoder: Encoder, batches: Iterable[Pairs], settings: Contrastive, seed: Sequence[int], cut: Cut
) -> dict[str, float]:
    """Mean loss over the queries, and the share of them whose own document is the most similar; empty without any."""
    loss, first, count = 0.0, 0, 0
    for number, pairs in enumerate(batches):
        vectors = F.normalize(embed_all(encoder, pairs.rows, cut, (*seed, number)), dim=1)
        size = len(pairs.queries)
        loss += float(pairs.loss(vectors, settings.temperature)) * size
        scores = vectors[:size] @ vectors[size:].T
        rivals = scores.masked_fill(pairs.ignore.to(scores.device), -torch.inf)
        first += int((scores.diagonal() > rivals.amax(dim=1)).sum())
        count += size
    return {"loss": loss / count, "accuracy": first / count} if count else {}
