"""Retrieval: are the documents that answer a query near the top? Exact search, deterministic also where scores tie."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bothways.evaluation.tasks import Retrieval
from bothways.evaluation.vectors import Embeds, products, unit_rows

CUT = 10
"""Results a query is judged by."""
SCORES_AT_ONCE = 8_000_000
"""Similarities alive at once: 32 MB in float32."""


def score_retrieval(encoder: Embeds, task: Retrieval) -> dict[str, float]:
    """`ndcg@10`, `recall@10` and `mrr@10`, each the mean over the queries, 0 to 1."""
    queries = unit_rows(encoder.encode_query([query.text for query in task.queries]))
    documents = unit_rows(encoder.encode_document([document.text for document in task.documents]))
    ranked = top_k(queries, documents, CUT)
    rows = []
    for query, places in zip(task.queries, ranked, strict=True):
        relevance = task.relevance[query.id]
        found = [relevance.get(task.documents[place].id, 0) for place in places]
        rows.append((ndcg(found, relevance.values()), recall(found, relevance.values()), reciprocal_rank(found)))
    means = np.mean(rows, axis=0)
    return dict(zip((f"ndcg@{CUT}", f"recall@{CUT}", f"mrr@{CUT}"), map(float, means), strict=True))


def top_k(queries: Any, documents: Any, k: int) -> NDArray[np.intp]:
    """For each query the places of the documents of largest product, best first: (queries, min(k, documents)).

    Of equal products the document that stands first in the corpus comes first.
    """
    count = documents.shape[0]
    k = min(k, count)
    found = np.empty((queries.shape[0], k), dtype=np.intp)
    chunk = max(1, SCORES_AT_ONCE // max(1, count))
    for start in range(0, queries.shape[0], chunk):
        scores = products(queries[start : start + chunk], documents)
        bars = np.partition(scores, count - k, axis=1)[:, count - k]
        for row, (values, bar) in enumerate(zip(scores, bars, strict=True), start=start):
            # All that reach the k-th largest value, ties at the edge included, in corpus order before the stable sort.
            reaching = np.flatnonzero(values >= bar)
            found[row] = reaching[np.argsort(-values[reaching], kind="stable")[:k]]
    return found


def ndcg(found: Sequence[int], relevance: Iterable[int]) -> float:
    """Discounted gain of `found`, the relevance of each result from the top, over that of the best possible order.

    Gain is the relevance itself, as in trec_eval. Source: Järvelin and Kekäläinen 2002, ACM TOIS 20(4).
    """
    ideal = sorted((score for score in relevance if score > 0), reverse=True)[: len(found)]
    return _discounted([max(score, 0) for score in found]) / _discounted(ideal)


def recall(found: Sequence[int], relevance: Iterable[int]) -> float:
    """Share of the relevant documents that are among the results."""
    return sum(score > 0 for score in found) / sum(score > 0 for score in relevance)


def reciprocal_rank(found: Sequence[int]) -> float:
    """One over the place, from 1, of the first relevant result; 0 if there is none."""
    return next((1 / place for place, score in enumerate(found, start=1) if score > 0), 0.0)


def _discounted(gains: Sequence[int]) -> float:
    return float(np.sum(np.asarray(gains) / np.log2(np.arange(2, len(gains) + 2))))
