"""Contract and property: whatever the format, compression and place, a job's units are all rows, each of them once."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bothways.corpus.columns import Kept, kept_columns
from bothways.corpus.inputs import InputFile, Losses, Unit, input_files, looked_at, planned
from bothways.corpus.units import Reader
from bothways.data import read_texts
from bothways.errors import ConfigError, DataError

PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda raw: pa.compress(raw, "zstd", asbytes=True),
}
TEXTS = ["one", 'two, "quoted"', "drei größer", "four", "five", "six", "seven"]


def content(suffix: str, texts: list[str] = TEXTS) -> bytes:
    stream = io.StringIO(newline="")
    if suffix in (".csv", ".tsv"):
        writer = csv.writer(stream, delimiter="," if suffix == ".csv" else "\t")
        writer.writerows([("text", "n"), *((text, i) for i, text in enumerate(texts))])
    for i, text in enumerate(texts):
        if suffix == ".txt":
            stream.write(f"{text}\n\n")
        elif suffix == ".jsonl":
            stream.write(json.dumps({"text": text, "n": i}) + "\n")
    return stream.getvalue().encode()


def plan(place: Any, size: int, **options: Any) -> tuple[tuple[InputFile, ...], list[Unit]]:
    losses = Losses(options.get("skip", False))
    most = options.get("most", 10**6)
    files, _ = looked_at(input_files([place]), None, (), most, losses)
    done = [planned(file, size, most, losses) for file in files]
    units = [Unit(0, n, *list(vars(unit).values())[2:]) for n, (_, own) in enumerate(done) for unit in own]
    return tuple(file for file, _ in done), units


def texts_of(files: tuple[InputFile, ...], units: list[Unit]) -> list[Any]:
    reader = Reader(files, 10**6)
    values = [raw.value for unit in units for raw in reader.rows(unit)]
    reader.close()
    return [value["text"] if isinstance(value, dict) else value for value in values]


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".tsv"])
def test_every_format_and_compression_is_read_by_units(suffix: str, packing: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}{packing}"
    path.write_bytes(PACKED[packing](content(suffix)))
    assert read_texts(path) == TEXTS
    files, units = plan(path, 3)
    assert [unit.rows for unit in units] == [3, 3, 1]
    assert (files[0].rows, len(files[0].content)) == (7, 64)
    assert texts_of(files, units) == TEXTS
    # In any order, and by a reader that has seen none of what lies before.
    assert texts_of(files, units[::-1]) == TEXTS[6:] + TEXTS[3:6] + TEXTS[:3]
    assert texts_of(files, units[::2]) == TEXTS[:3] + TEXTS[6:]


CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), min_size=1).filter(str.strip)


@given(st.lists(CELL, min_size=1, max_size=9), st.integers(1, 4), st.booleans())
def test_rows_of_csv_over_several_lines_are_never_cut(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], size: int, packed: bool
) -> None:
    path = tmp_path_factory.mktemp("csv") / ("a.csv.gz" if packed else "a.csv")
    path.write_bytes(gzip.compress(content(".csv", texts)) if packed else content(".csv", texts))
    files, units = plan(path, size)
    assert texts_of(files, units) == texts
    assert texts_of(files, units[::-1][:1]) == texts[(len(texts) - 1) // size * size :]


def test_parquet_is_entered_in_the_middle_of_a_row_group(tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(3001)]
    pq.write_table(pa.table({"text": texts, "other": [0] * 3001}), tmp_path / "a.parquet", row_group_size=1100)
    files, units = plan(tmp_path / "a.parquet", 700)
    assert files[0].columns == ("text",)
    assert texts_of(files, units) == texts
    assert texts_of(files, units[::-1]) == [text for unit in units[::-1] for text in texts[unit.row :][: unit.rows]]


def test_folders_patterns_and_urls_are_inputs(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    try:
        for suffix in (".jsonl.gz", ".csv", ".txt.zst"):
            first, _, packing = suffix[1:].partition(".")
            raw = PACKED[f".{packing}" if packing else ""](content(f".{first}"))
            memory.pipe(f"/things/deep/a{suffix}", raw)
            (tmp_path / "deep").mkdir(exist_ok=True)
            (tmp_path / "deep" / f"a{suffix}").write_bytes(raw)
        pq.write_table(pa.table({"text": TEXTS}), tmp_path / "deep" / "b.parquet")
        memory.pipe("/things/deep/b.parquet", (tmp_path / "deep" / "b.parquet").read_bytes())
        for place in (tmp_path, f"{tmp_path}/**/*", "memory://things", "memory://things/deep/*"):
            files, units = plan(place, 5)
            assert [file.name for file in files] == ["a.csv", "a.jsonl.gz", "a.txt.zst", "b.parquet"]
            assert texts_of(files, units) == TEXTS * 4
        assert read_texts("memory://things/deep/a.jsonl.gz") == TEXTS
        with pytest.raises(DataError, match=r"memory://things/none\.txt: no such file"):
            input_files(["memory://things/none.txt"])
        with pytest.raises(DataError, match=r"memory://things/\*\.csv: no file is named so"):
            input_files(["memory://things/*.csv"])
    finally:
        memory.rm("/things", recursive=True)


def test_urls_that_nothing_opens_say_so() -> None:
    with pytest.raises(ConfigError, match=r"nothing://a\.txt: Protocol not known: nothing"):
        input_files(["nothing://a.txt"])
    with pytest.raises(ConfigError, match=r"s3://bucket/a\.txt: a package for it is missing\. Install s3fs"):
        input_files(["s3://bucket/a.txt"])


def test_names_are_unlike_and_nothing_is_named_twice(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("one\n")
    (tmp_path / "b.txt").write_text("two\n")
    assert [file.name for file in input_files([tmp_path / "b.txt", tmp_path / "x", tmp_path / "y"])] == [
        "b.txt",
        f"{tmp_path}/x/a.txt",
        f"{tmp_path}/y/a.txt",
    ]
    with pytest.raises(DataError, match=r"b\.txt is named twice, so that its rows would be there twice"):
        input_files([tmp_path / "b.txt", tmp_path / "*.txt"])
    with pytest.raises(ConfigError, match=r'b\.txt: "weight" is for training: every row is encoded once'):
        input_files([f"{tmp_path}/b.txt?weight=2"])


def test_data_sets_are_counted_streamed_and_entered_in_the_middle(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_bytes(content(".jsonl"))
    files, units = plan(f"hub:{tmp_path / 'set'}", 3)
    assert (files[0].rows, files[0].columns) == (7, ("text",))
    assert texts_of(files, units) == TEXTS
    assert texts_of(files, units[::2]) == TEXTS[:3] + TEXTS[6:]


def kinds(path: Path, *keep: str) -> dict[str, str]:
    _, types = looked_at(input_files([path]), None, kept_columns(keep), 10**6, Losses(False))
    return {column.name: str(kind) for column, kind in types.items()}


def test_types_of_kept_columns_come_from_the_first_rows_or_the_schema(tmp_path: Path) -> None:
    rows = [{"text": "a", "i": 3, "f": 1, "s": "x", "b": True, "n": None}, {"text": "b", "i": None, "f": 1.5, "l": []}]
    json_file, table = tmp_path / "a.jsonl", tmp_path / "a.csv"
    json_file.write_text("\n".join(map(json.dumps, rows)))
    expected = {"i": "int64", "f": "double", "s": "string", "b": "bool", "n": "string"}
    assert kinds(json_file, *expected) == expected
    table.write_text("text,i,f,s,b,n,zip,mix\na,3,1,x,true,,007,1\nb,,1.5,y,false,,010,z\n")
    assert kinds(table, *expected, "zip", "mix") == expected | {"zip": "string", "mix": "string"}
    assert kinds(table, "i:string", "mix:string") == {"i": "string", "mix": "string"}
    stamps = pa.array([None, 5], pa.timestamp("ms"))
    pq.write_table(pa.table({"text": ["a", "b"], "t": stamps, "l": [[1], [2, 3]]}), tmp_path / "a.parquet")
    assert kinds(tmp_path / "a.parquet", "t", "l") == {"t": "timestamp[ms]", "l": "list<element: int64>"}
    with pytest.raises(DataError, match=r'a\.jsonl: "l" is a list; of JSON only texts, numbers, true and false'):
        kinds(json_file, "l")
    json_file.write_text('{"text": "a", "year": 1}\n{"text": "b", "year": "MMX"}\n')
    with pytest.raises(DataError, match=r'the type of "year" changes, .* have int and string\. .* --keep year:string'):
        kinds(json_file, "year")


def test_a_kept_column_is_of_one_type_in_all_files(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "year": pa.array([1], pa.int32())}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["a"], "year": ["1"]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r'b\.parquet: "year" is of type string, but of type int32 in a\.parquet'):
        kinds(tmp_path, "year")
    assert kinds(tmp_path, "year:string") == {"year": "string"}


def test_names_that_cannot_be_kept_are_refused() -> None:
    assert kept_columns(["a", "b:int", "c:d"]) == (Kept("a"), Kept("b", "int"), Kept("c:d"))
    with pytest.raises(ConfigError, match='--keep vector: the output has a column "vector" of its own'):
        kept_columns(["vector"])
    with pytest.raises(ConfigError, match="--keep a a: a column is named twice"):
        kept_columns(["a", "a:int"])
