"""Contract: rows by all the usual names, and an error for what may mean two things."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bothways.data import Example, RowError, read_examples
from bothways.data.examples import NEGATIVE, POSITIVE, QUERY, row_examples
from bothways.errors import DataError


@pytest.mark.parametrize(
    ("row", "examples"),
    [
        ({"question": "q", "positives": ["p1", "p2"], "negs": "n"}, [Example("q", p, ("n",)) for p in ("p1", "p2")]),
        ({"query": "q", "pos": ["p"], "neg": ["n"], "prompt": "i"}, [Example("q", "p", ("n",), "i")]),
        ({"query": "q", "answer": "p", "negative_1": "a", "negative_2": "b"}, [Example("q", "p", ("a", "b"))]),
        ({"query": "q", "positive": "p", "answer": "yes", "title": "T"}, [Example("q", "p")]),
        ({"anchor": "q", "positive": "p", "sentence1": "left", "text1": "alone"}, [Example("q", "p")]),
        ({"question": "q", "answer": ["p1", "p2"]}, [Example("q", "p1"), Example("q", "p2")]),
        ({"sentence1": "q", "sentence2": "p", "score": 0.25}, [Example("q", "p", score=0.25)]),
        ({"text1": "q", "text2": "p", "label": 1}, [Example("q", "p", score=1.0)]),
        ({"s1": "q", "s2": "p", "similarity": None}, [Example("q", "p")]),
        ({"premise": "q", "hypothesis": "p"}, [Example("q", "p")]),
        (
            {"query": "q", "positive_passages": [{"docid": "7", "title": "T", "text": "p"}], "negative_passages": []},
            [Example("q", "T p")],
        ),
        (
            {"query": "q", "pos": [{"text": "p"}, "r"], "neg": {"title": "T", "text": ""}},
            [Example("q", "p", ("T",)), Example("q", "r", ("T",))],
        ),
    ],
)
def test_rows_of_the_usual_shapes(row: dict[str, Any], examples: list[Example]) -> None:
    assert row_examples(row) == examples


def test_numbered_negatives_are_in_the_order_of_their_numbers() -> None:
    numbered = {f"negative_{i}": f"n{i}" for i in (10, 2, 1, 9, 3, 8, 4, 7, 5, 6)}
    (example,) = row_examples({"query": "q", "positive": "p", **numbered, "negative_11": None})
    assert example.negatives == tuple(f"n{i}" for i in range(1, 11))
    assert row_examples({"query": "q", "positive": "p", "negative_0": "a", "negative_1": "b"})[0].negatives == (
        "a",
        "b",
    )
    assert row_examples({"query": "q", "positive": "p", "negative_1": None})[0].negatives == ()


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (
            {"negative_1": "a", "negative_3": "c"},
            '"negative_2" is missing; the row has "negative_3". Number them without',
        ),
        ({"negative_2": "a"}, '"negative_1" is missing; the row has "negative_2".'),
        (
            {"negative_1": "a", "negative_2": None, "negative_3": "c"},
            '"negative_2" is missing; the row has "negative_3"',
        ),
        ({"negative_1": "a", "neg": "b"}, '"neg" and "negative_1" mean the same; the row has both.'),
        ({"negative_1": ["a"]}, '"negative_1" is a list, expected a text.'),
        ({"negative": "a", "negs": "b"}, '"negative" and "negs" mean the same; the row has both.'),
        ({"positives": "r"}, '"positive" and "positives" mean the same; the row has both.'),
        ({"question": "r"}, '"query" and "question" mean the same; the row has both.'),
        ({"instruction": "i", "prompt": "i"}, '"instruction" and "prompt" mean the same; the row has both.'),
        ({"score": 1, "label": 1}, '"score" and "label" mean the same; the row has both.'),
        ({"negative": {"body": "n"}}, '"negative" is an object without "text".'),
        ({"negative": {"text": " "}}, 'in "negative", "text" is empty.'),
        ({"negative": [["n"]]}, '"negative" is a list, expected a text.'),
        ({"score": 3.8}, '"score" is 3.8, expected 0 to 1. Say with score_max what the scores of this source end at'),
        ({"score": -0.5}, '"score" is -0.5, expected 0 to 1.'),
        ({"similarity": float("nan")}, '"similarity" is a number, expected a number from 0 to 1.'),
        ({"label": "neutral"}, '"label" is "neutral", expected a number from 0 to 1. Rename what is no score.'),
        ({"label": True}, '"label" is true or false, expected a number from 0 to 1.'),
    ],
)
def test_what_may_mean_two_things_or_none_is_named(row: dict[str, Any], problem: str) -> None:
    with pytest.raises(RowError) as error:
        row_examples({"query": "q", "positive": "p", **row})
    assert str(error.value).startswith(problem)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"sentence1": "q"}, '"query" (or "anchor", "question") is missing; the row has "sentence1".'),
        (
            {"anchor": "q", "text": "p"},
            '"positive" (or "pos", "positives", "positive_passages") is missing; the row has',
        ),
        ({"query": "q", "question": "q", "answer": "p"}, '"query" and "question" mean the same; the row has both.'),
        ({"text1": "a", "text2": "b", "s1": "c", "s2": "d"}, '"text1" and "s1" mean the same; the row has both.'),
        (
            {"premise": "q", "hypothesis": "p", "label": 0},
            '"premise" and "hypothesis" are a pair only where one follows',
        ),
        (
            {"query": "q", "pos": ["p1", "p2"], "score": 1},
            "it has one score and 2 positives. Give each a row of its own.",
        ),
        ({"query": "q", "answer": 5}, '"answer" is a number, expected a text.'),
    ],
)
def test_what_is_no_pair_is_named(row: dict[str, Any], problem: str) -> None:
    with pytest.raises(RowError) as error:
        row_examples(row)
    assert str(error.value).startswith(problem)


def test_scores_are_divided_by_what_they_end_at(tmp_path: Path) -> None:
    path = tmp_path / "sts.csv"
    path.write_text("sentence1,sentence2,score\na,b,3.8\nc,d,0\ne,f,\n")
    assert read_examples(f"{path}?score_max=5") == [
        Example("a", "b", score=3.8 / 5),
        Example("c", "d", score=0.0),
        Example("e", "f"),
    ]
    with pytest.raises(
        DataError, match=r'sts\.csv row 1 \(line 2\): "score" is 3\.8, expected 0 to 1\. Say with score_max'
    ):
        read_examples(path)
    rows = read_examples(f"{path}?score_max=3", on_bad_row="skip")
    assert (len(rows), rows.skipped[0].split(" Say")[0]) == (2, 'row 1 (line 2): "score" is 3.8, expected 0 to 3.')
    path.write_text("sentence1,sentence2,score\na,b,high\n")
    with pytest.raises(DataError, match='"score" is "high", expected a number from 0 to 1'):
        read_examples(path)


def test_instructions_of_a_source_are_for_rows_that_have_none(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"query": "q", "pos": "p"}\n{"query": "q", "pos": "p", "prompt": "own"}\n')
    options = "query_instruction=of the source&document_instruction=d"
    assert read_examples(f"{path}?{options}") == [
        Example("q", "p", (), "of the source", "d"),
        Example("q", "p", (), "own", "d"),
    ]


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), min_size=1).filter(str.strip)
ROW = st.tuples(TEXT, TEXT, st.lists(TEXT, max_size=3), st.none() | TEXT, st.none() | st.floats(0, 1))


@given(
    rows=st.lists(ROW, min_size=1, max_size=5),
    names=st.tuples(st.sampled_from(QUERY), st.sampled_from(POSITIVE), st.sampled_from(NEGATIVE)),
)
def test_every_shape_of_the_same_rows_gives_the_same_examples(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[Any, ...]], names: tuple[str, str, str]
) -> None:
    folder = tmp_path_factory.mktemp("shapes")
    expected = [Example(q, p, tuple(n), i, None, score) for q, p, n, i, score in rows]
    columns = [*names, "instruction", "score"]
    listed = [dict(zip(columns, row, strict=True)) for row in rows]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, listed)) + "\n")
    assert read_examples(folder / "a.jsonl") == expected
    types = [pa.string(), pa.string(), pa.list_(pa.string()), pa.string(), pa.float64()]
    cells = {name: pa.array([row[name] for row in listed], kind) for name, kind in zip(columns, types, strict=True)}
    pq.write_table(pa.table(cells), folder / "a.parquet")
    assert read_examples(folder / "a.parquet") == expected
    with (folder / "a.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*names[:2], "negative_1", "negative_2", "negative_3", "instruction", "score"])
        for query, positive, negatives, instruction, score in rows:
            writer.writerow([query, positive, *(negatives + [None] * 3)[:3], instruction, score])
    assert read_examples(folder / "a.csv") == expected


def test_a_data_set_has_the_same_names(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    home = tmp_path / "set"
    home.mkdir()
    pq.write_table(
        pa.table({"question": ["q1", "q2"], "answer": ["p1", "p2"], "negative_1": ["n1", None]}),
        home / "train.parquet",
    )
    source = f"hub:{home}?query_instruction=i&weight=2"
    rows = read_examples(source)
    assert rows == [Example("q1", "p1", ("n1",), "i"), Example("q2", "p2", (), "i")]
    assert [(origin.rows, origin.weight) for origin in rows.origins] == [(2, 2.0)]


def test_text_files_hold_no_examples(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a line\n")
    with pytest.raises(
        DataError, match=r'a\.txt: unknown suffix "\.txt"\. Expected \.jsonl, \.csv, \.tsv or \.parquet'
    ):
        read_examples(tmp_path / "a.txt")
    with pytest.raises(DataError, match=r"no file of the 1 in it ends in \.jsonl, \.csv"):
        read_examples(tmp_path)


def test_the_shared_pairs_are_read(shared: Path) -> None:
    triplets = read_examples(shared / "data" / "nli" / "triplets.jsonl.gz")
    assert all(len(example.negatives) == 1 and example.score is None for example in triplets)
    graded = read_examples(f"{shared / 'data' / 'sts-b' / 'dev.jsonl.gz'}?score_max=5")
    scores = [example.score for example in graded if example.score is not None]
    assert (len(scores), min(scores), max(scores)) == (len(graded), 0.0, 1.0)
