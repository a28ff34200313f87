"""Contract: tasks in the field's own layouts, and errors that name file and line."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from bothways.errors import DataError
from bothways.evaluation import Retrieval, Similarity, read_task

CORPUS = '{"_id": "d1", "title": "T", "text": "x"}\n{"_id": "d2", "text": "y"}\n'
QUERIES = '{"_id": "q1", "text": "a"}\n{"_id": "q2", "text": "b"}\n{"_id": "q3", "text": "c"}\n'


def beir(folder: Path, qrels: str, where: str = "qrels.tsv") -> Path:
    (folder / where).parent.mkdir(parents=True, exist_ok=True)
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(CORPUS.encode()))
    (folder / "queries.jsonl").write_text(QUERIES)
    (folder / where).write_text(qrels)
    return folder


@pytest.mark.parametrize("where", ["qrels.tsv", "qrels/test.tsv"])
@pytest.mark.parametrize("header", ["", "query-id\tcorpus-id\tscore\n"])
def test_a_folder_in_beir_layout_is_a_retrieval_task(tmp_path: Path, where: str, header: str) -> None:
    task = read_task(beir(tmp_path / "name", header + "q1\td1\t2\nq1\td2\t0\nq2\td2\t0\n", where))
    assert isinstance(task, Retrieval)
    assert task.name == "name"
    assert [document.text for document in task.documents] == ["T x", "y"]
    # q2 has nothing relevant and q3 no judgement, so neither has a score.
    assert [query.id for query in task.queries] == ["q1"]
    assert task.relevance["q1"] == {"d1": 2, "d2": 0}


def test_trec_columns_are_read(tmp_path: Path) -> None:
    task = read_task(beir(tmp_path / "name", "q1 0 d1 1\n"))
    assert isinstance(task, Retrieval)
    assert task.relevance == {"q1": {"d1": 1}}


@pytest.mark.parametrize(
    ("qrels", "problem"),
    [
        ("q1\td1\n", "qrels.tsv line 1: expected query-id, document-id and score, found 2 columns."),
        ("q1\td1\t1\nq9\td1\t1\n", 'qrels.tsv line 2: the query "q9" is not in queries.jsonl.'),
        ("q1\td1\t1\nq1\td9\t1\n", 'qrels.tsv line 2: the document "d9" is not in corpus.jsonl.'),
        ("q1\td1\t1\nq1\td2\thigh\n", 'qrels.tsv line 2: the score "high" is not a whole number.'),
        ("q1\td1\t0\n", "no query has a relevant document"),
    ],
)
def test_bad_judgements_are_named(tmp_path: Path, qrels: str, problem: str) -> None:
    with pytest.raises(DataError) as error:
        read_task(beir(tmp_path / "name", qrels))
    assert problem in str(error.value)


def test_an_empty_document_may_stand_in_a_collection_but_no_empty_query(tmp_path: Path) -> None:
    folder = beir(tmp_path / "name", "q1\td1\t1\n")
    (folder / "corpus.jsonl.gz").unlink()
    (folder / "corpus.jsonl").write_text('{"_id": "d1", "text": "x"}\n{"_id": "d2", "title": "", "text": ""}\n')
    task = read_task(folder)
    assert isinstance(task, Retrieval)
    assert [document.text for document in task.documents] == ["x", ""]
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": ""}\n')
    with pytest.raises(
        DataError, match=r'queries\.jsonl line 1: "text" is empty\. Fix the row: a task is measured whole'
    ):
        read_task(folder)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    folder = beir(tmp_path / "name", "q1\td1\t1\n")
    (folder / "queries.jsonl").unlink()
    with pytest.raises(DataError, match=r"queries\.jsonl \(plain or \.gz\) is missing"):
        read_task(folder)
    with pytest.raises(DataError, match="no such task"):
        read_task(tmp_path / "other")


@pytest.mark.parametrize("names", [("s1", "s2"), ("sentence1", "sentence2"), ("text1", "text2")])
def test_scored_pairs_are_a_similarity_task(tmp_path: Path, names: tuple[str, str]) -> None:
    path = tmp_path / "dev.jsonl"
    first, second = names
    path.write_text(
        f'{{"{first}": "a", "{second}": "b", "score": 1}}\n{{"{first}": "c", "{second}": "d", "score": 0.5}}\n'
    )
    task = read_task(path)
    assert task == Similarity(f"{tmp_path.name}/dev", ["a", "c"], ["b", "d"], [1.0, 0.5])


@pytest.mark.parametrize("score", ['"high"', "NaN", "true", "null"])
def test_a_score_that_is_no_number_is_named(tmp_path: Path, score: str) -> None:
    path = tmp_path / "dev.jsonl"
    path.write_text(f'{{"s1": "a", "s2": "b", "score": {score}}}\n')
    with pytest.raises(DataError, match=r'dev\.jsonl line 1: "score" is .*, expected a number'):
        read_task(path)


def test_equal_scores_order_nothing(tmp_path: Path) -> None:
    path = tmp_path / "dev.jsonl"
    path.write_text('{"s1": "a", "s2": "b", "score": 2}\n{"s1": "c", "s2": "d", "score": 2.0}\n')
    with pytest.raises(DataError, match="every score is 2"):
        read_task(path)
