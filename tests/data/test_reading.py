"""Contract: every bad row is named with file and line, and what is good is read as it stands."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path

import pytest

from bothways.data import Document, Example, fingerprint, read_documents, read_examples, read_texts
from bothways.errors import DataError

WAY_OUT = "Fix the row, or pass --on-bad-row skip (skips are counted and listed)."


def write(path: Path, content: str | bytes) -> Path:
    raw = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_a_text_file_is_one_text_a_line_and_blank_lines_only_separate(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, "\ufeffein Satz\r\n\n  \nline\u2028separator stays\nlast")
    assert read_texts(path) == ["ein Satz", "line\u2028separator stays", "last"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_json_rows_are_strings_or_objects_with_text(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, '"plain"\n{"text": "in an object", "more": 3}\n\n')
    assert read_texts(path) == ["plain", "in an object"]


def test_examples_take_the_usual_names(tmp_path: Path) -> None:
    rows = [
        {"query": "q", "positive": "p"},
        {"anchor": "q", "pos": ["p1", "p2"], "neg": ["n1", "n2"], "instruction": "i"},
        {"query": "q", "positive": "p", "negative": "n", "query_instruction": "i", "document_instruction": "d"},
        {"query": "q", "positive": "p", "negatives": None, "instruction": None, "source": "left alone"},
    ]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    assert read_examples(path) == [
        Example("q", "p"),
        Example("q", "p1", ("n1", "n2"), "i"),
        Example("q", "p2", ("n1", "n2"), "i"),
        Example("q", "p", ("n",), "i", "d"),
        Example("q", "p"),
    ]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ('{"query": "q", "positive": "p", "negative": ""}', '"negative" is empty.'),
        ('{"query": "q", "positive": "p", "neg": ["n", " "]}', '"neg" is empty.'),
        ('{"query": "q"}', '"positive" (or "pos", "positives", "positive_passages") is missing; the row has "query".'),
        ('{"query": "q", "anchor": "q", "pos": "p"}', '"query" and "anchor" mean the same; the row has both.'),
        ('{"query": 5, "positive": "p"}', '"query" is a number, expected a text.'),
        ('{"query": "q", "positive": []}', '"positive" is an empty list.'),
        ('{"query": "q", "positive": "p", "instruction": true}', '"instruction" is true or false, expected a text.'),
        ('["q", "p"]', "expected a JSON object, found a list."),
        (
            '{"query": "q", "positive": "\\ud800"}',
            '"positive" holds half of a surrogate pair, which is not a character.',
        ),
    ],
)
def test_a_bad_example_is_named_with_file_line_and_way_out(tmp_path: Path, row: str, problem: str) -> None:
    path = write(tmp_path / "triplets.jsonl", '{"query": "q", "positive": "p"}\n\n' + row + "\n")
    with pytest.raises(DataError) as error:
        read_examples(path)
    assert str(error.value) == f"triplets.jsonl line 3: {problem} {WAY_OUT}"


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (b'{"text": "', "malformed JSON: Unterminated string"),
        (b'{"text": "caf\xe9"}', "byte 14 of the line (0xe9) is not UTF-8."),
        (b'{"body": "b"}', '"text" is missing; the row has "body".'),
        (b"{}", '"text" is missing; the row has no field.'),
        (b"7", "expected a JSON object, found a number."),
        (b'" "', '"text" is empty.'),
    ],
)
def test_a_bad_text_is_named_with_file_and_line(tmp_path: Path, row: bytes, problem: str) -> None:
    path = write(tmp_path / "a.jsonl.gz", b'"good"\n' + row)
    with pytest.raises(DataError) as error:
        read_texts(path)
    assert str(error.value).startswith(f"a.jsonl.gz line 2: {problem}")


def test_bytes_that_are_not_utf8_are_found_in_text_files_too(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"good\n\nbad \xff\n")
    with pytest.raises(DataError, match=r"a\.txt line 3: byte 5 of the line \(0xff\) is not UTF-8"):
        read_texts(path)


def test_skipped_rows_are_counted_and_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.jsonl", '"one"\n""\n"two"\n' + "{\n" * 12)
    with caplog.at_level(logging.WARNING):
        texts = read_texts(path, on_bad_row="skip")
    assert texts == ["one", "two"]
    assert len(texts.skipped) == 13
    assert texts.skipped[0] == 'line 2: "text" is empty.'
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith('a.jsonl: skipped 13 bad rows, kept 2.\n  line 2: "text" is empty.')
    assert message.endswith("and 3 more")


def test_files_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.txt: no such file"):
        read_texts(tmp_path / "nothing.txt")
    expected = r"Expected \.txt, \.jsonl, \.csv, \.tsv or \.parquet, plain or \.gz"
    for name in ("a.doc.gz", "a.parquet.gz"):
        with pytest.raises(DataError, match=rf'{name}: unknown suffix "{name[1:]}"\. {expected}'):
            read_texts(write(tmp_path / name, "a"))
    with pytest.raises(DataError, match=r'a\.txt: unknown suffix "\.txt"\. Expected \.jsonl, \.csv'):
        read_examples(write(tmp_path / "a.txt", "a"))
    with pytest.raises(DataError, match=r"empty\.txt: no row to use, it is empty"):
        read_texts(write(tmp_path / "empty.txt", "\n \n"))
    with pytest.raises(DataError, match=r"bad\.jsonl: no row to use, all of its 2 rows are bad"):
        read_texts(write(tmp_path / "bad.jsonl", "{\n{\n"), on_bad_row="skip")
    whole = gzip.compress(b"one\ntwo\n" * 999)
    (tmp_path / "cut.txt.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\.txt\.gz after line \d+: not a whole gzip file"):
        read_texts(tmp_path / "cut.txt.gz")


def test_documents_have_ids_titles_and_no_id_twice(tmp_path: Path) -> None:
    rows = (
        '{"_id": "a", "title": "T", "text": "x"}\n{"id": 7, "text": "y"}\n"z"\n{"_id": "t", "title": "T", "text": ""}\n'
    )
    path = write(tmp_path / "corpus.jsonl", rows)
    assert read_documents(path) == [Document("a", "T x"), Document("7", "y"), Document("3", "z"), Document("t", "T")]
    with pytest.raises(DataError, match='line 2: the id "1" is taken by an earlier row'):
        read_documents(write(tmp_path / "twice.jsonl", '"x"\n{"id": 1, "text": "y"}\n'))


def test_a_fingerprint_is_of_content_and_order() -> None:
    assert fingerprint(["ab", "c"]) != fingerprint(["a", "bc"])
    assert fingerprint(["ab", "c"]) != fingerprint(["c", "ab"])
    assert fingerprint([Example("q", "p", ("n",))]) != fingerprint([Example("q", "p", (), "n")])
    assert fingerprint(iter(["ab", "c"])) == fingerprint(("ab", "c"))
    assert len(fingerprint([])) == 64


def test_the_shared_files_are_read_whole(shared: Path) -> None:
    triplets = read_examples(shared / "data" / "nli" / "triplets.jsonl.gz")
    assert len(triplets) == 8106
    assert all(example.negatives for example in triplets)
