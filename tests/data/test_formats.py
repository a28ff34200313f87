"""Contract: tables are read as they stand, and what is bad in them is named with file, row and, in CSV, line."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bothways.data import Document, Example, read_documents, read_examples, read_texts
from bothways.data.formats import raw_rows
from bothways.errors import DataError

WAY_OUT = "Fix the row, or pass --on-bad-row skip (skips are counted and listed)."


def write(path: Path, content: str | bytes) -> Path:
    raw = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def parquet(path: Path, rows: int = 7, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=rows)
    return path


@pytest.mark.parametrize(("name", "gap"), [("a.csv", ","), ("a.csv.gz", ","), ("a.tsv", "\t"), ("a.tsv.gz", "\t")])
def test_csv_has_a_header_and_quoted_fields(tmp_path: Path, name: str, gap: str) -> None:
    content = f'\ufeffid{gap}text\r\n1{gap}plain\r\n\r\n2{gap}"a, b{gap}""c""\nsecond line"\r\n3{gap}größer\n'
    path = write(tmp_path / name, content)
    assert read_texts(path) == ["plain", f'a, b{gap}"c"\nsecond line', "größer"]
    assert read_texts(path, column="id") == ["1", "2", "3"]


CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), min_size=1).filter(str.strip)


@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=7))
def test_csv_is_read_as_python_writes_it(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows([("text", "more"), *rows])
    path = write(tmp_path_factory.mktemp("csv") / "a.csv", stream.getvalue())
    assert read_texts(path) == [text for text, _ in rows]
    assert read_texts(path, column="more") == [more for _, more in rows]


def test_a_long_field_is_read_whole(tmp_path: Path) -> None:
    long = "word " * 40_000
    assert read_texts(write(tmp_path / "a.csv", f"text\n{long}\n")) == [long]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("5,", '"text" is empty.'),
        ("5,a,b", "found 3 fields, but the header has 2."),
        ('5,"a"b', "malformed CSV: ',' expected after '\"'."),
        ('5,"never closed\n', "malformed CSV: unexpected end of data."),
        (b"5,caf\xe9", "byte 6 of the line (0xe9) is not UTF-8."),
    ],
)
def test_a_bad_row_of_csv_is_named_with_row_and_line(tmp_path: Path, row: str | bytes, problem: str) -> None:
    raw = row if isinstance(row, bytes) else row.encode()
    path = write(tmp_path / "a.csv", b'id,text\n1,"two\nlines"\n\n2,good\n' + raw)
    with pytest.raises(DataError) as error:
        read_texts(path)
    assert str(error.value) == f"a.csv row 3 (line 6): {problem} {WAY_OUT}"


def test_bad_rows_of_csv_are_skipped_and_what_follows_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b'id,text\n1,one\n2,"a"b\n3,\xff\n4\n5,five\n')
    texts = read_texts(path, on_bad_row="skip")
    assert texts == ["one", "five"]
    assert [line.split(":")[0] for line in texts.skipped] == ["row 2 (line 3)", "row 3 (line 4)", "row 4 (line 5)"]


def test_headers_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'a\.csv: its header has "text" twice'):
        read_texts(write(tmp_path / "a.csv", "text,text\na,b\n"))
    with pytest.raises(DataError, match=r"a\.csv: in its header, byte 1 of the line"):
        read_texts(write(tmp_path / "a.csv", b"\xff,text\na,b\n"))
    with pytest.raises(DataError, match=r"a\.csv: no row to use, it is empty"):
        read_texts(write(tmp_path / "a.csv", "\n\n"))
    assert read_texts(write(tmp_path / "a.csv", ",text,\n0,a,\n1,b,\n")) == ["a", "b"]


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "a.csv":
        write(path, "id,body\n1,one\n")
    else:
        parquet(path, id=[1], body=["one"])
    assert read_texts(path, column="body") == ["one"]
    with pytest.raises(DataError) as error:
        read_texts(path, column="boddy")
    assert str(error.value) == f'{name}: there is no column "boddy"; it has "id", "body". Did you mean "body"?'
    with pytest.raises(DataError, match=r'no column "text"; it has "id", "body"\. Name one of them with --column'):
        read_texts(path)


def test_parquet_is_read_over_row_groups(tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(3001)]
    path = parquet(tmp_path / "a.parquet", 1100, number=list(range(3001)), text=pa.array(texts, pa.large_string()))
    assert read_texts(path) == texts
    assert [raw.number for raw in raw_rows(path, ".parquet", "text")] == list(range(1, 3002))
    assert next(iter(raw_rows(path, ".parquet", "text"))).value == {"text": "text 0"}


def test_a_bad_row_of_parquet_is_named(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", 2, text=["one", "two", None, " ", "five"])
    with pytest.raises(DataError) as error:
        read_texts(path)
    assert str(error.value) == f'a.parquet row 3: "text" is null, expected a text. {WAY_OUT}'
    texts = read_texts(path, on_bad_row="skip")
    assert (texts, len(texts.skipped)) == (["one", "two", "five"], 2)
    assert texts.skipped[1] == 'row 4: "text" is empty.'
    with pytest.raises(DataError, match=r'b\.parquet row 1: "text" is a number, expected a text'):
        read_texts(parquet(tmp_path / "b.parquet", text=[1.5]))


def test_bytes_in_parquet_that_are_not_utf8_spoil_one_row(tmp_path: Path) -> None:
    column = pa.array([b"good", b"caf\xe9", b"too"]).cast(pa.string(), safe=False)
    if not isinstance(column, pa.StringArray):
        column = pa.StringArray.from_buffers(3, *pa.array([b"good", b"caf\xe9", b"too"]).buffers()[1:])
    texts = read_texts(parquet(tmp_path / "a.parquet", text=column), on_bad_row="skip")
    assert (texts, texts.skipped) == (["good", "too"], ['row 2: "text": byte 4 (0xe9) is not UTF-8.'])


def test_a_parquet_file_that_is_cut_says_where(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", text=["one", "two"])
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"a\.parquet after row 0: not a whole Parquet file"):
        read_texts(path)


def test_examples_come_from_tables_too(tmp_path: Path) -> None:
    expected = [Example("q1", "p1", ("n1",), score=0.5), Example("q2", "p2", (), "i")]
    path = write(tmp_path / "a.csv", "anchor,positive,negative,instruction,score\nq1,p1,n1,,0.5\nq2,p2,,i,\n")
    assert read_examples(path) == expected
    columns = {
        "query": ["q1", "q2"],
        "pos": [["p1"], ["p2"]],
        "neg": [["n1"], None],
        "instruction": [None, "i"],
        "score": [0.5, None],
    }
    assert read_examples(parquet(tmp_path / "a.parquet", **columns)) == expected
    with pytest.raises(
        DataError, match=r'b\.csv row 1 \(line 2\): "query" \(or "anchor", "question"\) is missing; the row has "a"'
    ):
        read_examples(write(tmp_path / "b.csv", "a,positive\nx,y\n"))


def test_documents_come_from_tables_too(tmp_path: Path) -> None:
    expected = [Document("7", "T x"), Document("9", "y")]
    assert read_documents(parquet(tmp_path / "a.parquet", id=[7, 9], title=["T", None], text=["x", "y"])) == expected
    assert read_documents(write(tmp_path / "a.csv", "id,title,text\n7,T,x\n9,,y\n")) == expected
    assert read_documents(write(tmp_path / "b.csv", "text\nx\ny\n")) == [Document("1", "x"), Document("2", "y")]
