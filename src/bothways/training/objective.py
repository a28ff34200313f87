"""What the vectors of one contrastive batch are to minimise: one loss, shaped by the stage and by the data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bothways.data import Policy
from bothways.text import TextIds
from bothways.training.losses import LearnableTemperature, bixse, cosent, info_nce, matryoshka, spread_out
from bothways.training.settings import Contrastive, Supervised

Kind = Literal["info_nce", "cosent", "bixse"]


@dataclass(frozen=True)
class Pairs:
    """`documents[i]` belongs to `queries[i]`, the documents after them are hard negatives. `ignore`: see `info_nce`."""

    queries: list[TextIds]
    documents: list[TextIds]
    ignore: Bool[Tensor, "queries documents"]
    owners: list[int]
    """Of each document, the number of the query that it came with."""
    scores: list[float] | None = None
    """Of graded pairs, from 0 to 1."""

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


@dataclass(frozen=True)
class Objective:
    """One loss of queries and documents, with what is put around it."""

    temperature: float | LearnableTemperature
    kind: Kind = "info_nce"
    directions: tuple[str, ...] = ("q->d",)
    margin: float | None = None
    in_batch: bool = True
    across: bool = True
    """Whether documents that other processes embed are negatives; see `Pairs.apart`."""
    bias: float = 0.0
    dims: tuple[int, ...] = ()
    """First columns of the vectors that are to stand alone, besides all of them."""
    spread: float = 0.0
    """Weight of `spread_out`, of queries and of documents."""

    def __call__(self, pairs: Pairs, vectors: Float[Tensor, "rows dim"]) -> Float[Tensor, ""]:
        """The loss of the vectors of `pairs.rows`."""
        found = at_prefixes(partial(self._loss, pairs), vectors, self.dims)
        if not self.spread:
            return found
        count = len(pairs.queries)
        same = pairs.ignore[:, :count].to(vectors.device)
        apart = spread_out(vectors[:count], ignore=same | same.T) + spread_out(vectors[count:][:count])
        return found + self.spread * apart

    def _loss(self, pairs: Pairs, vectors: Float[Tensor, "rows dim"]) -> Float[Tensor, ""]:
        count, device = len(pairs.queries), vectors.device
        queries, documents = vectors[:count], vectors[count:]
        ignore = pairs.ignore.to(device)
        temperature = self.temperature() if isinstance(self.temperature, LearnableTemperature) else self.temperature
        if self.kind == "info_nce":
            return info_nce(
                queries,
                documents,
                temperature=temperature,
                ignore=ignore,
                directions=self.directions,
                margin=self.margin,
                in_batch=self.in_batch,
                owner=torch.tensor(pairs.owners, device=device),
            )
        assert pairs.scores is not None, "graded losses are chosen for graded pairs alone"
        scores = torch.tensor(pairs.scores, device=device)
        if self.kind == "cosent":
            return cosent(queries, documents[:count], scores, temperature=temperature)
        if not self.in_batch:
            ignore = pairs.apart(count).ignore.to(device)
        return bixse(queries, documents, scores, temperature=temperature, bias=self.bias, ignore=ignore)


def at_prefixes(
    loss: Callable[[Tensor], Tensor], vectors: Float[Tensor, "rows dim"], dims: Sequence[int]
) -> Float[Tensor, ""]:
    """The loss of all columns and, summed with it, of the first `dims` of them each."""
    return matryoshka(loss, vectors, (*dims, vectors.shape[1])) if dims else loss(vectors)


def objective(
    settings: Contrastive,
    policy: Policy | None = None,
    *,
    graded: bool = False,
    learnt: LearnableTemperature | None = None,
) -> Objective:
    """What a stage minimises on the examples of a data set with this policy; `graded`: they have scores.

    The data set's own temperature comes first, then the one that is `learnt`, then the stage's.
    """
    policy = Policy() if policy is None else policy
    temperature = policy.temperature or learnt or settings.temperature
    if not isinstance(settings, Supervised):
        return Objective(temperature, dims=settings.matryoshka, spread=settings.spread_out)
    directions = settings.directions
    if policy.symmetric and "d->q" not in directions:
        directions = (*directions, "d->q")
    return Objective(
        temperature,
        kind=settings.graded_loss if graded else "info_nce",
        directions=directions if policy.in_batch else ("q->d",),
        margin=settings.margin,
        in_batch=policy.in_batch,
        across=policy.across,
        bias=settings.bias,
        dims=settings.matryoshka,
        spread=settings.spread_out,
    )
