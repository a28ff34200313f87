"""Contract: files, folders, patterns and hub ids, how they are written, and what is wrong with them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bothways.data import Origin, Policy, Source, Tally, Texts, as_source, read_examples, read_texts
from bothways.errors import ConfigError, DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nested files of three kinds, and one that is no data."""
    parts = tmp_path / "parts"
    (parts / "deep").mkdir(parents=True)
    (parts / "a.txt").write_text("one\ntwo\n")
    (parts / "b.jsonl").write_text('"three"\n')
    pq.write_table(pa.table({"text": ["four", "five"]}), parts / "deep" / "c.parquet")
    (parts / "README").write_text("no data")
    return parts


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    """What `datasets` takes for a data set of two splits."""
    home = tmp_path / "data-set"
    home.mkdir()
    for name, count in (("train-0", 3), ("train-1", 4), ("test", 1)):
        rows = [{"body": f"{name} {i}", "query": f"q{i}", "positive": f"p{i}", "id": i} for i in range(count)]
        (home / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return home


def test_a_folder_and_a_pattern_are_read_in_order_of_their_paths(folder: Path) -> None:
    assert read_texts(folder) == ["one", "two", "three", "four", "five"]
    assert read_texts(str(folder / "**" / "*.parquet")) == ["four", "five"]
    assert read_texts(str(folder / "?.*")) == ["one", "two", "three"]
    with pytest.raises(DataError, match=r"x\*: no file is named so"):
        read_texts(str(folder / "x*"))
    with pytest.raises(DataError, match=r'README: unknown suffix ""'):
        read_texts(str(folder / "*[!p]"))
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no file of the 0 in it ends in \.txt, \.jsonl"):
        read_texts(folder / "empty")


def test_a_source_is_written_with_options_behind_a_question_mark() -> None:
    assert as_source("a.txt") == Source(path="a.txt")
    assert as_source("a.csv", column="body") == Source(path="a.csv", column="body")
    assert as_source("a.csv?weight=0.5&column=c", column="body") == Source(path="a.csv", weight=0.5, column="c")
    assert as_source("hub:o/n?config=raw-v1&split=test&revision=main") == Source(
        path="hub:o/n", config="raw-v1", split="test", revision="main"
    )
    assert as_source("part-?.txt").path == "part-?.txt"
    assert as_source("hub:o/n?config=raw-v1&split=test").name == "hub:o/n:raw-v1:test"
    assert as_source("/some/where/a.txt").name == "a.txt"
    assert as_source("/some/where?format=beir&split=dev").name == "where:dev"


def test_how_examples_are_learnt_from_is_written_so_too() -> None:
    spelling = "a.csv?in_batch=false&across=false&temperature=0.1&score_max=5&format=rows"
    source = as_source(f"{spelling}&query_instruction=Who, or what?&document_instruction=A+%26+B")
    assert source == Source(
        path="a.csv",
        in_batch=False,
        across=False,
        temperature=0.1,
        score_max=5.0,
        format="rows",
        query_instruction="Who, or what?",
        document_instruction="A & B",
    )
    assert source.policy == Policy(in_batch=False, across=False, temperature=0.1)
    assert as_source("a.csv?symmetric=true").policy == Policy(symmetric=True)
    assert as_source("a.csv?weight=2").policy == Policy()


def test_what_is_said_of_an_origin_leaves_out_what_nobody_changed() -> None:
    facts = {"name": "a", "weight": 1.0, "rows": 3, "skipped": 0}
    assert Origin("a", 1.0, 3, 0).facts == facts
    policy = Policy(across=False, temperature=0.1)
    assert Origin("a", 1.0, 3, 0, policy).facts == {**facts, "policy": {"across": False, "temperature": 0.1}}


def test_a_file_with_a_question_mark_in_its_name_is_that_file(tmp_path: Path) -> None:
    path = tmp_path / "a?weight=2"
    path.touch()
    assert as_source(path) == Source(path=str(path))


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        ("a.txt?wieght=2", 'a.txt?wieght=2: unknown option "wieght". Did you mean "weight"?'),
        ("a.txt?weight=two", 'a.txt?weight=two: weight is "two", expected a number above 0.'),
        ("a.txt?weight=0", "a.txt: weight=0.0, expected a number above 0."),
        ("a.txt?weight=nan", "a.txt: weight=nan, expected a number above 0."),
        ("a.txt?split=test", 'a.txt: "split" is for data sets of the hub. Leave it out, or write hub:'),
        ("a.csv?in_batch=no", 'a.csv?in_batch=no: in_batch is "no", expected true or false.'),
        ("a.csv?temperature=low", 'temperature is "low", expected a number above 0.'),
        ("a.csv?temperature=0", "a.csv: temperature=0.0, expected a number above 0."),
        ("a.csv?score_max=-5", "a.csv: score_max=-5.0, expected a number above 0."),
        ("a.csv?query_instruction=", 'a.csv: "query_instruction" is empty. Leave it out.'),
        ("a.csv?symmetric=true&in_batch=false", "a.csv: symmetric=True needs in_batch=True: a document is told apart"),
        ("hub:o/n?format=beir", "hub:o/n: format=beir is for folders. Leave it out, or name a folder."),
        ("", "A source has an empty path."),
    ],
)
def test_what_is_wrong_with_a_source_is_named(spelling: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        as_source(spelling)


def test_an_unknown_format_is_named(unchecked: None) -> None:
    with pytest.raises(ConfigError, match=r'a: format is "bier", expected one of "auto", "rows", "e5", "beir"\.'):
        as_source("a?format=bier")


@pytest.mark.parametrize("option", ["in_batch=false", "temperature=2", "query_instruction=q", "format=rows"])
def test_texts_have_nothing_to_be_told_apart_from(folder: Path, option: str) -> None:
    message = re.escape(f'a.txt: "{option.split("=")[0]}" is for examples, of which each has a query and documents')
    with pytest.raises(ConfigError, match=message):
        Texts([f"{folder / 'a.txt'}?{option}"])
    with pytest.raises(ConfigError, match=message):
        read_texts(f"{folder / 'a.txt'}?{option}")


def test_texts_are_streamed_source_by_source(folder: Path) -> None:
    (folder / "bad.jsonl").write_text('"six"\n""\n')
    texts = Texts([folder / "a.txt", f"{folder / 'bad.jsonl'}?weight=2"], on_bad_row="skip")
    assert list(texts) == list(texts) == ["one", "two", "six"]
    tally = Tally()
    assert list(texts.of(texts.sources[1], tally)) == ["six"]
    assert (tally.kept, tally.skipped, tally.listed) == (1, 1, ['line 2: "text" is empty.'])
    with pytest.raises(DataError, match=r'bad\.jsonl line 2: "text" is empty'):
        list(Texts([folder / "bad.jsonl"]))


def test_texts_look_at_their_sources_when_they_are_made(folder: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.txt: no such file"):
        Texts([folder / "nothing.txt"])
    with pytest.raises(DataError, match=r'c\.parquet: there is no column "body"'):
        Texts([Source(path=str(folder / "deep"), column="body")])


def test_a_fingerprint_is_of_contents_columns_and_weights(folder: Path) -> None:
    path = folder / "a.txt"
    before = Texts([path]).fingerprint()
    copy = path.with_name("copy.txt")
    copy.write_bytes(path.read_bytes())
    assert Texts([copy]).fingerprint() == before
    assert Texts([f"{path}?weight=2"]).fingerprint() != before
    assert Texts([f"{path}?column=body"]).fingerprint() != before
    assert Texts([path, copy]).fingerprint() != before
    path.write_text("one\nTWO\n")
    assert Texts([path]).fingerprint() != before


def test_a_data_set_is_streamed_by_split_and_column(data_set: Path) -> None:
    pytest.importorskip("datasets")
    assert read_texts(f"hub:{data_set}?column=body&split=test") == ["test 0"]
    assert read_texts(f"hub:{data_set}", column="body") == [
        f"train-{i} {j}" for i, n in ((0, 3), (1, 4)) for j in range(n)
    ]
    assert [example.positive for example in read_examples(f"hub:{data_set}?split=test")] == ["p0"]


def test_what_is_wrong_with_a_data_set_is_named(data_set: Path) -> None:
    pytest.importorskip("datasets")
    name = re.escape(f"hub:{data_set}")
    with pytest.raises(DataError, match=rf'{name}: there is no column "boddy"; it has "body", .*Did you mean "body"'):
        read_texts(f"hub:{data_set}?column=boddy")
    with pytest.raises(DataError, match=rf"{name}: Bad split: valid. Available splits: .*train.*test"):
        read_texts(f"hub:{data_set}?column=body&split=valid")
    with pytest.raises(DataError, match=rf"{name}: BuilderConfig 'raw' not found\. Available: \['default'\]"):
        read_texts(f"hub:{data_set}?column=body&config=raw")
    with pytest.raises(DataError, match=r"hub:nobody/nothing: Couldn't reach 'nobody/nothing' on the Hub"):
        read_texts("hub:nobody/nothing")
    with pytest.raises(DataError, match=rf'{name} row 1: "id" is a number, expected a text\. Fix the row'):
        read_texts(f"hub:{data_set}?column=id")


def test_the_fingerprint_of_a_data_set_changes_with_its_files(data_set: Path) -> None:
    pytest.importorskip("datasets")
    before = Texts([f"hub:{data_set}?column=body"]).fingerprint()
    assert Texts([f"hub:{data_set}?column=body"]).fingerprint() == before
    assert Texts([f"hub:{data_set}?column=body&split=test"]).fingerprint() != before
    (data_set / "train-1.jsonl").write_text('{"body": "another"}\n')
    assert Texts([f"hub:{data_set}?column=body"]).fingerprint() != before


def test_without_datasets_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"hub:o/n: reading the hub needs .* pip install 'bothways\[hub\]'"):
        read_texts("hub:o/n")
