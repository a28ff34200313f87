"""The floor: known values on real tasks, and the words of the queries unseen."""

from __future__ import annotations

from pathlib import Path

import pytest

from bothways.data import Document
from bothways.evaluation import Retrieval, TfIdf, compare, read_task, score


@pytest.mark.parametrize(
    ("path", "measure", "value"),
    [
        ("cranfield", "ndcg@10", 0.364),
        ("xquad-en", "ndcg@10", 0.954),
        ("limit-small", "ndcg@10", 0.997),
    ],
)
def test_floors_of_real_tasks(shared: Path, path: str, measure: str, value: float) -> None:
    task = read_task(shared / "data" / path)
    assert score(TfIdf.of(task), task)[measure] == pytest.approx(value, abs=5e-4)


def test_idf_comes_from_the_documents_alone() -> None:
    task = Retrieval("t", [Document("q", "unseen words")], [Document("d", "known tokens")], {"q": {"d": 1}})
    floor = TfIdf.of(task)
    assert sorted(floor.vectorizer.vocabulary_) == ["known", "tokens"]
    assert floor.encode_query(["unseen words"]).nnz == 0


def test_every_comparison_starts_with_the_floor() -> None:
    task = Retrieval(
        "t",
        [Document("q", "compressed file")],
        [Document("a", "open a file"), Document("b", "read a compressed file")],
        {"q": {"b": 1}},
    )
    same = TfIdf.of(task)
    rows = compare({"mine": same}, [task])
    assert [(row["task"], row["encoder"]) for row in rows] == [("t", "tf-idf"), ("t", "mine")]
    assert rows[0]["mrr@10"] == rows[1]["mrr@10"] == 1.0
