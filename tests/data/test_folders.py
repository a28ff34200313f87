"""Contract: the E5 folder and BEIR folders as training data."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path

import pytest

from bothways.data import Example, Policy, join, read_examples
from bothways.data.e5 import ENOUGH, SETS, Part, Task, parts_of
from bothways.errors import ConfigError, DataError


def e5(folder: Path, *names: str, rows: int = 3) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        lines = [{"query": f"{name} q{i}", "positive": f"p{i}", "negative": f"n{i}"} for i in range(rows)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return folder


def test_there_are_14_data_sets_of_16_tasks_three_of_them_symmetric() -> None:
    assert (len(SETS), sum(map(len, SETS.values()))) == (14, 16)
    symmetric = [(name, number) for name, tasks in SETS.items() for number, task in enumerate(tasks) if task.symmetric]
    assert symmetric == [("allnli", 1), ("quora_duplicates", 0), ("quora_duplicates", 1)]


def test_every_file_is_a_source_of_its_own_with_its_instruction(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["allnli_split1", "allnli_split2", "quora_duplicates", *(name for name in SETS if len(SETS[name]) == 1)]
    folder = e5(tmp_path / "echo-data", *names, rows=5)
    with caplog.at_level(logging.WARNING):
        rows = read_examples(f"{folder}?weight=0.5&temperature=0.1")
    assert [record.getMessage() for record in caplog.records] == [
        "echo-data: taken for the E5 folder of 14 data sets. format=rows reads its files as they stand."
    ]
    counts = {origin.name: origin.rows for origin in rows.origins}
    assert len(counts) == 16
    assert counts["echo-data/allnli_split1.jsonl"] == counts["echo-data/nq.jsonl"] == 5
    assert counts["echo-data/quora_duplicates.jsonl (1 of 2)"] == 3
    assert counts["echo-data/quora_duplicates.jsonl (2 of 2)"] == 2
    assert {(origin.weight, origin.policy) for origin in rows.origins} == {(0.5, Policy(temperature=0.1))}
    by_query = {example.query: example for example in rows}
    assert len(by_query) == len(rows) == 16 * 5 - 5
    premise, similar = (task.instruction for task in SETS["allnli"])
    first, second = (task.instruction for task in SETS["quora_duplicates"])
    for query, of_query, of_documents in (
        ("allnli_split1 q0", premise, None),
        ("allnli_split2 q0", similar, similar),
        ("quora_duplicates q2", first, first),
        ("quora_duplicates q3", second, second),
        ("fever q4", "Given a claim, retrieve documents that support or refute the claim", None),
    ):
        number = query[-1]
        assert by_query[query] == Example(query, f"p{number}", (f"n{number}",), of_query, of_documents)


def test_halves_go_before_the_whole_and_what_is_left_out_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = e5(tmp_path / "e5", "allnli", "allnli_split1", "allnli_split2", "more", "squad")
    with caplog.at_level(logging.WARNING):
        rows = read_examples(f"{folder}?format=e5")
    assert [record.getMessage() for record in caplog.records] == ["e5: left out allnli.jsonl, more.jsonl."]
    assert [origin.name for origin in rows.origins] == [
        "e5/allnli_split1.jsonl",
        "e5/allnli_split2.jsonl",
        "e5/squad.jsonl",
    ]
    (folder / "allnli_split2.jsonl").unlink()
    assert [part.name for part in parts_of(folder)][:2] == ["allnli.jsonl (1 of 2)", "allnli.jsonl (2 of 2)"]
    (folder / "allnli.jsonl").unlink()
    assert [part.name for part in parts_of(folder)] == ["allnli_split1.jsonl", "squad.jsonl"]


def test_half_of_the_data_sets_make_the_folder(tmp_path: Path) -> None:
    folder = e5(tmp_path / "mix", *list(SETS)[: ENOUGH - 1])
    assert {example.query_instruction for example in read_examples(folder)} == {None}
    e5(folder, list(SETS)[ENOUGH - 1])
    assert None not in {example.query_instruction for example in read_examples(folder)}
    plain = read_examples(f"{folder}?format=rows")
    assert ({example.query_instruction for example in plain}, len(plain.origins)) == ({None}, 1)


def test_an_instruction_of_the_source_or_the_row_goes_before_the_published_one(tmp_path: Path) -> None:
    folder = e5(tmp_path / "e5", "nq", rows=1)
    with (folder / "nq.jsonl").open("a") as file:
        file.write('{"query": "q", "positive": "p", "instruction": "own"}\n')
    rows = read_examples(f"{folder}?format=e5&query_instruction=mine")
    assert [example.query_instruction for example in rows] == ["mine", "own"]


def test_a_bad_row_of_a_part_is_named_once(tmp_path: Path) -> None:
    folder = e5(tmp_path / "e5", "allnli")
    with (folder / "allnli.jsonl").open("a") as file:
        file.write('{"query": "q"}\n{"query": "q", "positive": "p"}\n')
    with pytest.raises(DataError, match=r'e5/allnli\.jsonl \(2 of 2\) line 4: "positive" .* is missing'):
        read_examples(f"{folder}?format=e5")
    rows = read_examples(f"{folder}?format=e5", on_bad_row="skip")
    assert [(origin.rows, origin.skipped) for origin in rows.origins] == [(3, 0), (1, 1)]
    assert len(rows.skipped) == 1


def test_parts_share_out_the_rows_of_a_file() -> None:
    parts = [Part(Path("a.jsonl"), Task("i"), turn, 2) for turn in range(2)]
    assert [[number for number in range(1, 6) if part.holds(number)] for part in parts] == [[1, 3, 5], [2, 4]]


def test_folders_that_are_not_what_is_said_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing: format=e5, but there is no such folder"):
        read_examples(f"{tmp_path / 'nothing'}?format=e5")
    with pytest.raises(DataError, match=r"no data set of E5 is there\. Expected files such as allnli\.jsonl, dureader"):
        read_examples(f"{e5(tmp_path / 'other', 'more')}?format=e5")
    with pytest.raises(DataError, match=r"other: qrels/train\.tsv or qrels\.tsv \(plain or \.gz\) is missing"):
        read_examples(f"{tmp_path / 'other'}?format=beir")


CORPUS = '{"_id": "d1", "title": "T", "text": "x"}\n{"_id": "d2", "text": "y"}\n{"_id": "d3", "text": ""}\n"no id"\n'
QUERIES = '{"_id": "q1", "text": "a"}\n{"_id": "q2", "text": "b"}\n{"_id": "q3", "text": "c"}\n'


def beir(folder: Path, qrels: str, where: str = "qrels/train.tsv") -> Path:
    (folder / where).parent.mkdir(parents=True, exist_ok=True)
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(CORPUS.encode()))
    (folder / "queries.jsonl").write_text(QUERIES)
    (folder / where).write_text(qrels)
    return folder


@pytest.mark.parametrize("where", ["qrels/train.tsv", "qrels.tsv"])
def test_judgements_become_examples(tmp_path: Path, caplog: pytest.LogCaptureFixture, where: str) -> None:
    qrels = "query-id\tcorpus-id\tscore\nq2\td2\t1\nq1\td2\t0\nq1\td1\t2\nq1\t4\t1\nq3\td1\t0\n"
    folder = beir(tmp_path / "set", qrels, where)
    with caplog.at_level(logging.WARNING):
        rows = read_examples(f"{folder}?query_instruction=i&in_batch=false")
    assert [record.getMessage() for record in caplog.records] == [
        "set: taken for a BEIR folder. format=rows reads its files as they stand."
    ]
    assert rows == [
        Example("a", "T x", ("y",), "i"),
        Example("a", "no id", ("y",), "i"),
        Example("b", "y", (), "i"),
    ]
    (origin,) = rows.origins
    assert (origin.name, origin.rows, origin.policy) == ("set", 3, Policy(in_batch=False))
    assert len(join([rows, rows]).origins) == 2


def test_a_split_is_named_and_train_is_the_default(tmp_path: Path) -> None:
    folder = beir(tmp_path / "set", "q1\td1\t1\n", "qrels/dev.tsv")
    beir(folder, "q2\td1\t1\n", "qrels/test.tsv")
    with pytest.raises(
        DataError,
        match=r"set: qrels/train\.tsv is missing; of qrels there are dev, test\. Name one of them: format=beir",
    ):
        read_examples(folder)
    rows = read_examples(f"{folder}?format=beir&split=test")
    assert ([example.query for example in rows], rows.origins[0].name) == (["b"], "set:test")
    with pytest.raises(DataError, match=r"qrels/valid\.tsv is missing; of qrels there are dev, test"):
        read_examples(f"{folder}?format=beir&split=valid")


@pytest.mark.parametrize(
    ("qrels", "problem"),
    [
        (
            "q1\td1\n",
            "train.tsv line 1: expected query-id, document-id and score, found 2 columns. Fix the row, or pass",
        ),
        ("q1\td1\t1\nq9\td1\t1\n", 'train.tsv line 2: the query "q9" is not in queries.jsonl.'),
        ("q1\td1\t1\nq1\td9\t1\n", 'train.tsv line 2: the document "d9" is not in corpus.jsonl.'),
        ("q1\td3\t1\n", 'train.tsv line 1: the document "d3" is empty.'),
        ("q1\td1\t1\nq1\td2\thigh\n", 'train.tsv line 2: the score "high" is not a whole number.'),
        ("q1\td1\t0\n", "no query has a relevant document in train.tsv. Name another split."),
    ],
)
def test_bad_judgements_are_named(tmp_path: Path, qrels: str, problem: str) -> None:
    with pytest.raises(DataError) as error:
        read_examples(beir(tmp_path / "set", qrels))
    assert problem in str(error.value)


def test_grades_are_no_scores(tmp_path: Path) -> None:
    folder = beir(tmp_path / "set", "q1\td1\t2\n")
    assert read_examples(folder)[0].score is None
    with pytest.raises(ConfigError, match=r'set: "score_max" is for graded pairs; a BEIR folder has none'):
        read_examples(f"{folder}?score_max=2")


def test_bad_rows_of_all_three_files_are_skipped_and_counted(tmp_path: Path) -> None:
    folder = beir(tmp_path / "set", "q1\td1\t1\nq1\td9\t1\nq3\td1\t1\n")
    (folder / "queries.jsonl").write_text(QUERIES.replace('"c"', '""'))
    with gzip.open(folder / "corpus.jsonl.gz", "at") as file:
        file.write("{\n")
    rows = read_examples(folder, on_bad_row="skip")
    assert rows == [Example("a", "T x")]
    # A query without a text, a broken document, an unknown document, and a judgement of the query that was skipped.
    assert (len(rows.skipped), rows.origins[0].skipped) == (4, 4)


def test_a_shared_collection_is_read(shared: Path) -> None:
    rows = read_examples(shared / "data" / "cranfield", on_bad_row="skip")
    assert len({example.query for example in rows}) > 100
    assert len(rows) > len({example.query for example in rows})
