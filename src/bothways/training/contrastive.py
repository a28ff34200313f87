"""Queries and documents -> the loss of one batch, in forward passes that fit the memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import torch
from scipy.stats import spearmanr
from torch.nn import functional as F

from bothways.encoder import Encoder
from bothways.errors import ConfigError
from bothways.training.gradcache import embed_all, gradcache
from bothways.training.objective import Objective, Pairs
from bothways.training.processes import Place
from bothways.training.settings import Contrastive
from bothways.training.task import Cut, Part


def check_dims(encoder: Encoder, settings: Contrastive) -> None:
    """Raises ConfigError for a number of first dimensions that the encoder's vectors do not have."""
    for dim in settings.matryoshka:
        if dim >= encoder.dim:
            raise ConfigError(
                f"{type(settings).__name__}(matryoshka={settings.matryoshka}): {dim}, but the vectors of this encoder "
                f"have {encoder.dim} dimensions, which are trained anyway. Use numbers below that."
            )


def graphs_alive(settings: Contrastive) -> float:
    """Tokens whose graphs `gradcache` may keep."""
    return 0 if settings.grad_cache else math.inf


def contrastive_parts(
    encoder: Encoder,
    pairs: Pairs,
    loss: Objective,
    settings: Contrastive,
    seed: Sequence[int],
    place: Place,
    cut: Cut,
) -> Iterator[Part]:
    """This process's parts of the batch's loss (see `gradcache`), whose negatives are those of all processes.

    Where the objective is not `across`, they are those of as many blocks as there are processes, each for itself.
    """
    pairs = pairs if loss.across else pairs.apart(place.processes)
    return gradcache(
        encoder,
        pairs.rows,
        partial(loss, pairs),
        seed=seed,
        place=place,
        cut=cut,
        alive=graphs_alive(settings),
    )


@torch.no_grad()
def contrastive_scores(
    encoder: Encoder, batches: Iterable[tuple[Pairs, Objective]], seed: Sequence[int], cut: Cut
) -> dict[str, float]:
    """Mean loss over the queries, and the share of them whose own document is the most similar; empty without any.

    Of graded pairs there is no such share, but how well the cosines follow the scores ("spearman").
    """
    loss, first, count, ranked = 0.0, 0, 0, 0
    cosines: list[float] = []
    grades: list[float] = []
    for number, (pairs, objective) in enumerate(batches):
        vectors = F.normalize(embed_all(encoder, pairs.rows, cut, (*seed, number)), dim=1)
        size = len(pairs.queries)
        loss += float(objective(pairs, vectors)) * size
        count += size
        scores = vectors[:size] @ vectors[size:].T
        if pairs.scores is not None:
            cosines += scores.diagonal().tolist()
            grades += pairs.scores
            continue
        rivals = scores.masked_fill(pairs.ignore.to(scores.device), -torch.inf)
        first += int((scores.diagonal() > rivals.amax(dim=1)).sum())
        ranked += size
    found = {"loss": loss / count} if count else {}
    if ranked:
        found["accuracy"] = first / ranked
    if len(set(grades)) > 1 and len(set(cosines)) > 1:
        found["spearman"] = float(spearmanr(cosines, grades).statistic)
    return found
