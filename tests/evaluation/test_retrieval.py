"""Parity with scikit-learn and with plain code; property: neither chunks nor ties change what is found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import ndcg_score

from bothways.data import Document
from bothways.evaluation import Retrieval, retrieval, score
from bothways.evaluation.retrieval import ndcg, recall, reciprocal_rank, top_k


def test_graded_ndcg_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    for _ in range(23):
        relevance, scores = rng.integers(0, 4, 17), rng.permutation(17).astype(float)
        relevance[3] = 2
        found = relevance[np.argsort(-scores)[:10]].tolist()
        assert ndcg(found, relevance.tolist()) == pytest.approx(ndcg_score([relevance], [scores], k=10), abs=1e-12)


def test_the_measures_by_hand() -> None:
    found, judged = [0, 2, 0, 1], [2, 1, 1, 0]
    gained = 2 / np.log2(3) + 1 / np.log2(5)
    best = 2 / np.log2(2) + 1 / np.log2(3) + 1 / np.log2(4)
    assert ndcg(found, judged) == pytest.approx(gained / best)
    assert recall(found, judged) == pytest.approx(2 / 3)
    assert reciprocal_rank(found) == 0.5
    assert reciprocal_rank([0, 0]) == 0


small_vectors = st.tuples(st.integers(1, 7), st.integers(1, 11)).flatmap(
    lambda shape: st.tuples(
        arrays(np.float32, (shape[0], 3), elements=st.integers(-2, 2)),
        arrays(np.float32, (shape[1], 3), elements=st.integers(-2, 2)),
    )
)


@given(small_vectors, st.integers(1, 13), st.integers(1, 40))
def test_top_k_is_a_stable_sort_whatever_the_chunk(
    vectors: tuple[np.ndarray, np.ndarray], k: int, scores_at_once: int
) -> None:
    queries, documents = vectors
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "SCORES_AT_ONCE", scores_at_once)
        found = top_k(queries, documents, k)
    # Whole numbers, so that products are exact and there are many ties.
    np.testing.assert_array_equal(found, np.argsort(-(queries @ documents.T), axis=1, kind="stable")[:, :k])


class Lookup:
    """Gives every text a vector of one's choice."""

    def __init__(self, vectors: dict[str, list[float]]) -> None:
        self.vectors = vectors

    def encode_query(self, texts: list[str], /) -> np.ndarray:
        return np.array([self.vectors[text] for text in texts])

    encode_document = encode_query


def test_a_task_is_scored_by_cosine_over_its_queries() -> None:
    task = Retrieval(
        "by hand",
        [Document("q1", "right"), Document("q2", "up")],
        [Document("long", "far up right"), Document("d-right", "just right"), Document("d-up", "just up")],
        {"q1": {"d-right": 1}, "q2": {"long": 1}},
    )
    encoder = Lookup({"right": [3, 0], "up": [0, 2], "far up right": [9, 9], "just right": [1, 0], "just up": [0, 1]})
    assert score(encoder, task) == pytest.approx(
        {"ndcg@10": (1 + 1 / np.log2(3)) / 2, "recall@10": 1.0, "mrr@10": 0.75}
    )
