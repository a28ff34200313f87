"""Contract of a job: what it writes, how it goes on, what it refuses, and what becomes of bad input."""

from __future__ import annotations

import gzip
import json
import pickle
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from bothways.corpus import Corpus, Encode, Encoded, encode
from bothways.corpus.encode import one_after_another
from bothways.corpus.inputs import Unit
from bothways.corpus.job import Job, begin, read
from bothways.corpus.layout import read_manifest, tables
from bothways.corpus.showing import Show
from bothways.corpus.worker import Done, Worker
from bothways.errors import ConfigError, DataError, JobError

WAY_OUT = "Fix the row, or pass --on-bad-row skip (skips are counted and listed)."


class Letters:
    """A text's vector is how often it has an a, a b, a c."""

    dim = 3

    def __init__(self) -> None:
        self.calls: list[int] = []

    def encode_document(self, texts: list[str], /, **asked: Any) -> Any:
        assert not {name for name, value in asked.items() if value not in (None, "float32", "truncate")}
        self.calls.append(len(texts))
        if "breaks" in texts:
            raise RuntimeError("the model broke")
        if any(len(text) > 50 for text in texts):
            warnings.warn(f"{len(texts)} texts were cut", stacklevel=2)
        return np.array([[text.count(letter) for letter in "abc"] for text in texts], dtype=np.float32)

    def encode(self, texts: list[str], /, *, instruction: str, **asked: Any) -> Any:
        return self.encode_document([instruction + text for text in texts], **asked)


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch) -> Letters:
    letters = Letters()
    monkeypatch.setattr(Worker, "encoder", letters)
    return letters


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "model" / "modules.json").write_text("[]")
    return tmp_path / "model"


def lines(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


ROWS = [{"id": f"n{i}", "text": "a" * i + "bc", "year": 2000 + i, "ok": i % 2 == 0} for i in range(7)]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return lines(tmp_path / "rows.jsonl", ROWS)


def table(out: Path) -> dict[str, list[Any]]:
    return pa.concat_tables(tables(out, read_manifest(out))).to_pydict()


def test_ids_texts_kept_columns_and_vectors_are_written(
    rows: Path, model: Path, letters: Letters, tmp_path: Path
) -> None:
    done = encode(model, [rows], tmp_path / "out", Encode(keep=("year", "ok"), rows_per_part=3))
    assert (done.vectors, done.rejected, done.done) == (7, 0, 7)
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.encoder, manifest.dim, manifest.columns) == (str(model), 3, ("year", "ok"))
    assert [part.rows for part in manifest.parts] == [3, 3, 1]
    assert letters.calls == [3, 3, 1]
    found = table(tmp_path / "out")
    assert list(found) == ["id", "text", "year", "ok", "vector"]
    for name in ("id", "text", "year", "ok"):
        assert found[name] == [row[name] for row in ROWS]
    assert found["vector"] == [[i, 1, 1] for i in range(7)]
    schema = pq.read_schema(tmp_path / "out" / "part-00001.parquet")
    assert schema == manifest.schema({"year": pa.int64(), "ok": pa.bool_()})
    assert json.loads(schema.metadata[b"bothways"])["fingerprint"] == manifest.fingerprint
    assert [hit.id for hit in Corpus.open(tmp_path / "out").search(np.array([1, 0, 0], np.float32), 2)] == ["n6", "n5"]


def test_rows_without_ids_are_named_by_file_and_number(model: Path, letters: Letters, tmp_path: Path) -> None:
    lines(tmp_path / "a.txt", ["a\n\n", "b\n"])
    lines(tmp_path / "b.csv", ["text,code\n", "c,x7\n", "d,x8\n"])
    encode(model, [tmp_path / "a.txt", tmp_path / "b.csv"], tmp_path / "out", Encode(texts=False))
    assert table(tmp_path / "out") == {
        "id": ["a.txt:1", "a.txt:3", "b.csv:1", "b.csv:2"],
        "vector": [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]],
    }
    encode(model, [f"{tmp_path}/b.csv?column=code"], tmp_path / "other", Encode(id_column="text"))
    assert (table(tmp_path / "other")["id"], table(tmp_path / "other")["text"]) == (["c", "d"], ["x7", "x8"])
    assert Corpus.open(tmp_path / "out").texts == ["", "", "", ""]


def test_title_and_instruction_stand_in_front(model: Path, letters: Letters, tmp_path: Path) -> None:
    rows = lines(tmp_path / "rows.jsonl", [{"title": "aa", "text": "b"}])
    encode(model, [rows], tmp_path / "out", Encode(instruction="cc"))
    assert table(tmp_path / "out") == {"id": ["rows.jsonl:1"], "text": ["aa b"], "vector": [[2, 1, 2]]}


def test_parquet_keeps_types_that_json_does_not_have(model: Path, letters: Letters, tmp_path: Path) -> None:
    columns = {"when": pa.array([1, None, 3], pa.timestamp("us", "UTC")), "tags": [["x"], [], None]}
    pq.write_table(pa.table({"id": [1, 2, 3], "text": ["a", "b", "c"], **columns}), tmp_path / "a.parquet")
    encode(model, [tmp_path / "a.parquet"], tmp_path / "out", Encode(keep=("when", "tags"), rows_per_part=2))
    expected = pq.read_table(tmp_path / "a.parquet", columns=["when", "tags"])
    found = pa.concat_tables(tables(tmp_path / "out", read_manifest(tmp_path / "out"), ["when", "tags"]))
    assert found.to_pydict() == expected.to_pydict()
    assert found.schema.field("when").type == pa.timestamp("us", "UTC")


def test_what_is_there_is_not_done_again(rows: Path, model: Path, letters: Letters, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encode(model, [rows], out, Encode(rows_per_part=2))
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}
    (out / "part-00001.parquet").unlink()
    (out / ".part-00001.parquet.elsewhere-1.partial").write_text("half")
    letters.calls.clear()
    done = encode(model, [rows], out, Encode())
    assert (letters.calls, done.done, done.vectors) == ([2], 2, 7)
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}
    assert {name for name in before if after[name] != before[name]} == {"part-00001.parquet"}
    assert table(out)["id"] == [row["id"] for row in ROWS]
    assert not list(out.glob(".*.partial"))


def test_a_failure_keeps_the_parts_before_it_and_a_manifest_that_says_so(
    model: Path, letters: Letters, tmp_path: Path
) -> None:
    rows = lines(tmp_path / "rows.txt", ["a\n", "b\n", "breaks\n"])
    with pytest.raises(RuntimeError, match="the model broke"):
        encode(model, [rows], tmp_path / "out", Encode(rows_per_part=2))
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == [
        "corpus.json",
        "job.json",
        "part-00000.parquet",
        "units.jsonl",
    ]
    with pytest.raises(DataError, match=r"out: not finished, 2 vectors so far\. Run the same `bothways encode` again"):
        Corpus.open(tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"instruction": "i"},
            r"holds a job with instruction=None, now it is 'i'\. Give the command it was begun with",
        ),
        ({"rows_per_part": 5}, r"holds a job with rows_per_part=3, now it is 5"),
        ({"texts": False}, r"holds a job with texts=True, now it is False"),
        ({"opening": {"dtype": "bfloat16"}}, r"holds a job with dtype='float32', now it is 'bfloat16'"),
        ({"weights": b"others"}, r"holds vectors of another encoder: .* Vectors of two encoders do not compare"),
        ({"content": "more"}, r"the input rows\.jsonl has changed since the job was begun\. .*name another --out"),
        ({"more": True}, r"holds a job without the input more\.txt"),
        ({"gone": True}, r"holds a job that has the input rows\.jsonl too"),
    ],
)
def test_another_job_is_refused_with_what_has_changed(
    change: dict[str, Any], said: str, rows: Path, model: Path, letters: Letters, tmp_path: Path
) -> None:
    settings, inputs, opening = Encode(rows_per_part=3), [rows], {"dtype": "float32"}
    encode(model, inputs, tmp_path / "out", settings, opening=opening)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    lines(tmp_path / "more.txt", ["x\n"])
    if "weights" in change:
        (model / "model.safetensors").write_bytes(change["weights"])
    elif "content" in change:
        lines(rows, [*ROWS[:-1], {**ROWS[-1], "text": change["content"]}])
    elif "opening" in change:
        opening = change["opening"]
    elif "more" in change:
        inputs = [rows, tmp_path / "more.txt"]
    elif "gone" in change:
        inputs = []
    else:
        settings = replace(settings, **change)
    with pytest.raises(ConfigError, match=said):
        encode(model, inputs, tmp_path / "out", settings, opening=opening)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_an_opening_that_is_left_out_is_as_good_as_none(
    rows: Path, model: Path, letters: Letters, tmp_path: Path
) -> None:
    more = {"dtype": "float32", "attn_implementation": None, "trust_remote_code": False}
    encode(model, [rows], tmp_path / "out", opening=more)
    assert encode(model, [rows], tmp_path / "out", opening={"dtype": "float32"}).done == 0
    with pytest.raises(ConfigError, match=r"holds a job with dtype='float32', now it is None"):
        encode(model, [rows], tmp_path / "out")


def test_input_that_was_copied_is_the_same_input(rows: Path, model: Path, letters: Letters, tmp_path: Path) -> None:
    encode(model, [rows], tmp_path / "out")
    (tmp_path / "copy").mkdir()
    rows.rename(tmp_path / "copy" / "rows.jsonl")
    assert encode(model, [tmp_path / "copy"], tmp_path / "out").done == 0


def test_a_folder_is_not_shared_and_not_taken(rows: Path, model: Path, letters: Letters, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with FileLock(out / ".lock"), pytest.raises(ConfigError, match=r"out: another process is encoding into it"):
        encode(model, [rows], out)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="file is a file, expected a folder to write to"):
        encode(model, [rows], tmp_path / "file")
    with pytest.raises(DataError, match=r"none\.txt: no such file"):
        encode(model, [tmp_path / "none.txt"], tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"none\.txt: no such file"):
        encode(model, [tmp_path / "none.txt"], tmp_path / "empty")
    assert list((tmp_path / "empty").iterdir()) == []


def test_numpy_is_made_of_the_parts_and_on_a_later_run_too(
    rows: Path, model: Path, letters: Letters, tmp_path: Path
) -> None:
    encode(model, [rows], tmp_path / "out", Encode(rows_per_part=3))
    letters.calls.clear()
    done = encode(model, [rows], tmp_path / "out", format="npy")
    assert (done.written, letters.calls) == (tmp_path / "out" / "vectors.npy", [])
    np.testing.assert_array_equal(np.load(done.written), [[i, 1, 1] for i in range(7)])
    ids = (tmp_path / "out" / "ids.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in ids] == [row["id"] for row in ROWS]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_lance_is_made_of_the_parts(rows: Path, model: Path, letters: Letters, tmp_path: Path) -> None:
    lancedb = pytest.importorskip("lancedb")
    done = encode(model, [rows], tmp_path / "out", Encode(keep=("year",), rows_per_part=3), format="lance")
    found = lancedb.connect(done.written).open_table("corpus").to_arrow()
    assert found.to_pydict() == table(tmp_path / "out")


def test_of_many_equal_warnings_one_is_given(model: Path, letters: Letters, tmp_path: Path) -> None:
    rows = lines(tmp_path / "rows.txt", ["a" * 60 + "\n"] * 3)
    with pytest.warns(UserWarning, match="1 texts were cut") as heard:
        encode(model, [rows], tmp_path / "out", Encode(rows_per_part=1))
    assert len(heard) == 1


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"Encode\(rows_per_part=0\): expected 1 or more"):
        Encode(rows_per_part=0)
    with pytest.raises(ConfigError, match='--keep id: the output has a column "id" of its own'):
        Encode(keep=("id",))


def test_vectors_are_not_cut_to_more_than_they_are(rows: Path, model: Path, letters: Letters, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="encode: truncate_dim=5, but the encoder's vectors have 3 numbers"):
        encode(model, [rows], tmp_path / "out", Encode(truncate_dim=5))


BAD: dict[str, tuple[str, bytes, str, str, int]] = {
    "null": (
        "a.jsonl",
        b'{"text": "a"}\n{"text": null}\n{"text": "b"}\n',
        "line 2",
        '"text" is null, expected a text.',
        2,
    ),
    "empty": ("a.csv", b"text\na\n \nb\n", "row 2 (line 3)", '"text" is empty.', 2),
    "encodings": (
        "a.txt",
        b"a\n" + "größer\n".encode("latin-1") + b"b\n",
        "line 2",
        "byte 3 of the line (0xf6) is not UTF-8.",
        2,
    ),
    "utf-16": (
        "a.jsonl",
        b'"a"\n' + '"b"'.encode("utf-16") + b'\n"b"\n',
        "line 2",
        "byte 1 of the line (0xff) is not UTF-8.",
        2,
    ),
    "long": (
        "a.jsonl",
        b'"a"\n"' + b"x" * 50_000_000 + b'"\n"b"\n',
        "line 2",
        "it has 50,000,003 bytes, but a row may have 16,777,216 (--max-row-bytes).",
        2,
    ),
    "long cell": (
        "a.csv",
        b"text\na\n" + b"x" * 50_000_000 + b"\nb\n",
        "row 2 (line 3)",
        "it has 50,000,001 bytes, but a row may have 16,777,216 (--max-row-bytes).",
        2,
    ),
    "long quoted": (
        "a.csv",
        b'text\na\n"\n' + b"x" * 50_000_000 + b'"\nb\n',
        "row 2 (line 3)",
        "it has 50,000,004 bytes, but a row may have 16,777,216 (--max-row-bytes).",
        2,
    ),
    "id": (
        "a.jsonl",
        b'{"id": 1, "text": "a"}\n{"id": "1", "text": "c"}\n{"id": 2, "text": "b"}\n',
        "line 2",
        'the id "1" is taken by line 1.',
        2,
    ),
    "64 bits": (
        "a.jsonl",
        b'{"text": "a", "year": 1}\n{"text": "c", "year": 9223372036854775808}\n{"text": "b", "year": 2}\n',
        "line 2",
        '"year" is 9223372036854775808, which has more than 64 bits. Keep it as year:string.',
        2,
    ),
    "type": (
        "a.jsonl",
        b'{"text": "a", "year": 1}\n' * 1000 + b'{"text": "c", "year": "x"}\n{"text": "b", "year": 2}\n',
        "line 1001",
        '"year" is a text, but the column is of type int64. '
        "Say which it is with --keep year:TYPE (string, int, float, bool).",
        1001,
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_named_with_its_place_or_skipped_and_listed(
    case: str, model: Path, letters: Letters, tmp_path: Path
) -> None:
    name, raw, place, problem, good = BAD[case]
    (tmp_path / name).write_bytes(raw)
    settings = Encode(keep=("year",) if case in ("type", "64 bits") else ())
    with pytest.raises(DataError) as error:
        encode(model, [tmp_path / name], tmp_path / "out", settings)
    assert str(error.value) == f"{name} {place}: {problem} {WAY_OUT}"
    # The way out of the message works on the job that was begun.
    done = encode(model, [tmp_path / name], tmp_path / "out", replace(settings, on_bad_row="skip"))
    assert (done.vectors, done.rejected, done.listed) == (good, 1, (f"{name} {place}: {problem}",))
    assert table(tmp_path / "out")["text"][-2:] == ["a", "b"]
    (listed,) = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(listed) == {"file": name, "place": place, "reason": problem}
    with pytest.raises(ConfigError, match=r"holds a job with on_bad_row='skip', now it is 'raise'"):
        encode(model, [tmp_path / name], tmp_path / "out", settings)


def test_a_quote_that_is_never_closed_takes_no_more_than_a_row_may_have(
    model: Path, letters: Letters, tmp_path: Path
) -> None:
    (tmp_path / "a.csv").write_text('text\na\n"never closed\n' + "gone\n" * 20 + "b\n" * 30)
    done = encode(model, [tmp_path / "a.csv"], tmp_path / "out", Encode(on_bad_row="skip", max_row_bytes=120))
    assert done.rejected == 1
    assert "row 2 (line 3): " in done.listed[0]
    assert table(tmp_path / "out")["text"] == ["a", *["b"] * (done.vectors - 1)]
    assert done.vectors > 25


def damaged(tmp_path: Path, kind: str) -> Path:
    if kind == "gzip":
        # Numbers that do not repeat, so that half of the bytes is half of the rows.
        draw = np.random.default_rng(0)
        raw = gzip.compress("".join(f"a{number}\n" for number in draw.integers(10**12, size=20_000)).encode())
        (tmp_path / "cut.txt.gz").write_bytes(raw[: len(raw) // 2])
        return tmp_path / "cut.txt.gz"
    path = tmp_path / "cut.parquet"
    texts = [f"a{number}" for number in range(3000)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=1000, compression="gzip", use_dictionary=False)
    raw = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(raw[:-99])
    else:
        second = pq.read_metadata(path).row_group(1).column(0)
        start = second.data_page_offset + second.total_compressed_size // 3
        path.write_bytes(raw[:start] + bytes(99) + raw[start + 99 :])
    return path


def both(kind: str, model: Path, tmp_path: Path) -> tuple[str, Encoded]:
    """What is said without skipping, and what is there with it. A good file stands beside the damaged one."""
    inputs = [damaged(tmp_path, kind), lines(tmp_path / "good.txt", ["b\n", "c\n"])]
    with pytest.raises(DataError) as error:
        encode(model, inputs, tmp_path / "out", Encode(rows_per_part=700))
    return str(error.value), encode(model, inputs, tmp_path / "out", Encode(on_bad_row="skip"))


def test_a_corrupt_gzip_costs_what_lies_behind_the_damage(model: Path, letters: Letters, tmp_path: Path) -> None:
    said, done = both("gzip", model, tmp_path)
    match = re.fullmatch(
        r"cut\.txt\.gz after line (\d+): not a whole gzip file \(.*\)\. Make it again\. Or pass .*", said
    )
    assert match, said
    lines_before = int(match[1])
    assert 9_000 < lines_before < 11_000
    assert (done.vectors, done.rejected) == (lines_before + 2, 1)
    assert done.listed[0].startswith(f"cut.txt.gz after line {lines_before}: not a whole gzip file")
    assert table(tmp_path / "out")["text"][-2:] == ["b", "c"]
    assert (
        encode(
            model, [tmp_path / "cut.txt.gz", tmp_path / "good.txt"], tmp_path / "out", Encode(on_bad_row="skip")
        ).done
        == 0
    )


def test_a_truncated_parquet_costs_its_rows_alone(model: Path, letters: Letters, tmp_path: Path) -> None:
    said, done = both("truncated", model, tmp_path)
    assert said.startswith("cut.parquet after row 0: not a whole Parquet file")
    assert said.endswith("Or pass --on-bad-row skip: what can be read is kept.")
    assert (done.vectors, done.rejected) == (2, 1)
    assert done.listed[0].startswith("cut.parquet after row 0: not a whole Parquet file")


def test_a_corrupt_row_group_costs_its_own_rows(model: Path, letters: Letters, tmp_path: Path) -> None:
    said, done = both("corrupt", model, tmp_path)
    assert re.match(r"cut\.parquet row 1001: its row group cannot be read \(.*\)\. Fix the row, or pass", said)
    assert (done.vectors, done.rejected) == (2002, 1000)
    assert table(tmp_path / "out")["text"][-3:] == ["a2999", "b", "c"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"text_column": "txt"}, r'a\.jsonl: there is no column "txt"; it has "id", "text"\. Did you mean "text"\?'),
        (
            {"id_column": "no"},
            r'a\.jsonl: there is no column "no"; .* (Did you mean|Name one of them with --id-column)',
        ),
        ({"keep": ("zzz",)}, r'a\.jsonl: there is no column "zzz"; it has "id", "text"\. Name one of them with --keep'),
    ],
)
def test_a_wrong_column_is_named_with_those_there_are_before_anything_is_encoded(
    settings: dict[str, Any], said: str, model: Path, letters: Letters, tmp_path: Path
) -> None:
    rows = lines(tmp_path / "a.jsonl", [{"id": 1, "text": "a"}])
    with pytest.raises(DataError, match=said):
        encode(model, [rows], tmp_path / "out", Encode(**settings, on_bad_row="skip"))
    pq.write_table(pa.table({"id": [1], "text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=said.replace("jsonl", "parquet")):
        encode(model, [tmp_path / "a.parquet"], tmp_path / "out", Encode(**settings, on_bad_row="skip"))
    assert letters.calls == []


def test_a_corpus_without_a_row_to_use_is_an_error(model: Path, letters: Letters, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.txt: no row to use, there is none"):
        encode(model, [lines(tmp_path / "a.txt", ["\n"])], tmp_path / "out")
    with pytest.raises(
        DataError, match=r'out: no vector, all 2 rows are bad\. The first:\nb\.jsonl line 1: "text" is null'
    ):
        encode(model, [lines(tmp_path / "b.jsonl", [{"text": None}] * 2)], tmp_path / "out", Encode(on_bad_row="skip"))


@pytest.mark.parametrize(("processes", "parts"), [(1, [1024] * 3 + [928]), (2, [512] * 7 + [416])])
def test_a_small_corpus_has_parts_for_every_process(
    processes: int, parts: list[int], model: Path, letters: Letters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bothways.corpus.job.PIECES", 32)
    rows = lines(tmp_path / "rows.txt", [f"a{i}\n" for i in range(4000)])
    job, units = begin(model, [rows], tmp_path / "out", Encode(), {}, 8192, processes)
    assert [unit.rows for unit in units] == parts
    assert job.settings.rows_per_part == parts[0]
    assert [unit.number for unit in units] == list(range(len(parts)))
    encode(model, [rows], tmp_path / "out")
    assert table(tmp_path / "out")["text"] == [f"a{i}" for i in range(4000)]


def test_an_engine_that_leaves_parts_out_is_noticed(rows: Path, model: Path, letters: Letters, tmp_path: Path) -> None:
    def lazy(job: Job, units: Sequence[Unit], show: Show) -> None:
        one_after_another(job, units[:1], show)

    with pytest.raises(JobError, match=r"out: 2 of 3 parts were not made\. The same command goes on"):
        encode(model, [rows], tmp_path / "out", Encode(rows_per_part=3), engine=lazy)
    assert read_manifest(tmp_path / "out", complete=False).rows == 3


def test_a_worker_can_be_sent_before_and_after_it_has_worked(
    rows: Path, model: Path, letters: Letters, tmp_path: Path
) -> None:
    encode(model, [rows], tmp_path / "out", Encode(keep=("year",), rows_per_part=3))
    job, units = read(tmp_path / "out")
    worker = Worker(job)
    for number in (1, 2):
        job.part(units[number]).unlink()
        worker, unit = pickle.loads(pickle.dumps((worker, units[number])))
        assert worker.do(unit) == Done(number, unit.rows, 0)
        worker.close()
    assert table(tmp_path / "out")["id"] == [row["id"] for row in ROWS]


def test_a_job_is_read_as_it_was_written(rows: Path, model: Path, letters: Letters, tmp_path: Path) -> None:
    encode(model, [rows], tmp_path / "out", Encode(keep=("year", "ok:string"), rows_per_part=3))
    job, units = read(tmp_path / "out")
    assert (job.settings.keep, job.files[0].name, len(units)) == (("year", "ok:string"), "rows.jsonl", 3)
    assert [(unit.row, unit.line, unit.rows) for unit in units] == [(0, 0, 3), (3, 3, 3), (6, 6, 1)]
    (tmp_path / "out" / "job.json").write_text('{"version": 1}')
    with pytest.raises(DataError, match=r"job\.json: not a job of this package"):
        read(tmp_path / "out")
    (tmp_path / "out" / "job.json").write_text('{"version": 2}')
    with pytest.raises(DataError, match=r"job\.json: version 2, but this bothways knows 1"):
        read(tmp_path / "out")
