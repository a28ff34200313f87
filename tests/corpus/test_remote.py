"""Contract of a worker on another machine: what it answers, when it gives up, and what it makes of an engine's rows."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bothways.corpus import Encode
from bothways.corpus.inputs import Rejected, Unit
from bothways.corpus.job import Job, begin, of_rows
from bothways.corpus.remote import Remote, rows_of, settle
from bothways.corpus.worker import Worker
from bothways.errors import BothwaysError, DataError, JobError


class Letters:
    """A text's vector is how often it has an a, a b, a c."""

    dim = 3

    def encode_document(self, texts: list[str], /, **asked: Any) -> Any:
        assert not {name for name, value in asked.items() if value not in (None, "float32", "truncate")}
        if "breaks" in texts:
            raise RuntimeError("the model broke")
        return np.array([[text.count(letter) for letter in "abc"] for text in texts], dtype=np.float32)


class Heard:
    def __init__(self) -> None:
        self.rows: list[int] = []
        self.lines: list[str] = []

    def add(self, rows: int) -> None:
        self.rows.append(rows)

    def say(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture(autouse=True)
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(Worker, "encoder", Letters())
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "model" / "modules.json").write_text("[]")
    return tmp_path / "model"


def begun(model: Path, texts: Sequence[Any], **settings: Any) -> tuple[Job, list[Unit]]:
    rows = model.parent / "rows.jsonl"
    rows.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts)))
    return begin(model, [rows], model.parent / "out", Encode(rows_per_part=2, **settings), {}, 2)


def frames(units: Sequence[Unit]) -> list[pd.DataFrame]:
    """As Spark gives them: frames of some rows, one of none."""
    rows = pd.DataFrame(rows_of(units))
    return [rows[:1], rows[1:1], rows[1:]]


def answers(job: Job, units: Sequence[Unit]) -> list[dict[str, Any]]:
    done = pickle.loads(pickle.dumps(Remote(job))).frames(frames(units))
    return [row for frame in done for row in frame.to_dict("records")]


def test_units_in_frames_become_parts_and_answers(model: Path) -> None:
    job, units = begun(model, ["a", None, "b", "c", "ab"], on_bad_row="skip")
    heard = Heard()
    found = answers(job, units)
    settle(found, job, units, heard)
    assert [(row["unit"], row["rows"], row["rejected"]) for row in found] == [(0, 1, 1), (1, 2, 0), (2, 1, 0)]
    assert (heard.rows, heard.lines) == ([2, 2, 1], [])
    assert [pq.read_table(job.part(unit))["id"].to_pylist() for unit in units] == [["0"], ["2", "3"], ["4"]]
    assert job.rejected(units[0]).exists()


def test_a_part_that_is_there_is_answered_for_and_not_written_again(model: Path) -> None:
    job, units = begun(model, ["a", None, "b"], on_bad_row="skip")
    first = answers(job, units)
    before = [job.part(unit).stat().st_mtime_ns for unit in units]
    assert answers(job, units) == first
    assert [job.part(unit).stat().st_mtime_ns for unit in units] == before


def test_errors_arrive_as_they_are(model: Path) -> None:
    job, units = begun(model, ["a", "b", "c", None])
    heard = Heard()
    with pytest.raises(DataError, match=r'^rows\.jsonl line 4: "text" is null, expected a text\. Fix the row, or pass'):
        settle(answers(job, units), job, units, heard)
    assert heard.rows == [2]


def test_a_failure_that_nobody_foresaw_is_told_with_its_place_and_trace(model: Path) -> None:
    job, units = begun(model, ["a", "b", "breaks"])
    said = (
        r"^a worker on \S+ \(process \d+\) failed over unit 1 \(rows\.jsonl, rows 3 to 3\):\n(.*\n)*.*the model broke"
    )
    with pytest.raises(JobError, match=said):
        settle(answers(job, units), job, units, Heard())


def test_errors_of_other_rooms_arrive_as_their_nearest_of_ours(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class ElsewhereError(DataError):
        pass

    def fails(self: Worker, unit: Unit) -> None:
        raise ElsewhereError("told")

    monkeypatch.setattr(Worker, "do", fails)
    job, units = begun(model, ["a"])
    with pytest.raises(BothwaysError, match=r"^told$") as error:
        settle(answers(job, units), job, units, Heard())
    assert type(error.value) is DataError


def test_a_unit_over_which_three_died_is_given_up(model: Path) -> None:
    job, units = begun(model, ["a"])
    for name in ("node-1", "node-2"):
        (job.out / f".part-00000.parquet.{name}.partial").touch()
    assert answers(job, units)[0]["kind"] == ""
    job.part(units[0]).unlink()
    (job.out / ".part-00000.parquet.node-3.partial").touch()
    (job.out / ".part-00001.parquet.node-4.partial").touch()
    said = r"3 workers died over unit 0 \(rows\.jsonl, rows 1 to 1\): node-1, node-2, node-3 \(machine-process\)\. Is "
    with pytest.raises(JobError, match=said):
        settle(answers(job, units), job, units, Heard())
    assert len(list(job.out.glob(".part-00000.*"))) == 3


@pytest.mark.parametrize("lost", ["out/job.json", "rows.jsonl", "model"])
def test_a_machine_that_does_not_see_the_job_says_so(lost: str, model: Path, tmp_path: Path) -> None:
    job, units = begun(model, ["a"])
    (tmp_path / lost).rename(tmp_path / "elsewhere")
    with pytest.raises(JobError, match=rf"a worker on \S+ \(process \d+\) does not see .*{lost}\. Encoder, input and"):
        settle(answers(job, units), job, units, Heard())


def test_warnings_are_passed_on_and_units_without_an_answer_are_missed(model: Path) -> None:
    job, units = begun(model, ["a", "b", "c"])
    heard = Heard()
    one = {"unit": 0, "rows": 2, "rejected": 0, "said": "cut\nagain", "kind": "", "problem": ""}
    with pytest.raises(
        JobError, match=r"1 units have no answer, the first is unit 1 \(rows\.jsonl, rows 3 to 3\)\. The"
    ):
        settle([one, one], job, units, heard)
    assert (heard.rows, heard.lines) == ([2], ["cut", "again", "cut", "again"])


class Spark:
    """Of Spark what the page uses: frames of some rows go through a function that was pickled."""

    def __init__(self) -> None:
        self.sparkContext = self

    def parallelize(self, rows: list[dict[str, int]], slices: int) -> list[dict[str, int]]:
        return rows

    def createDataFrame(self, rows: list[dict[str, int]]) -> Spark:
        self.given = pd.DataFrame(rows)
        return self

    def mapInPandas(self, function: Any, schema: str) -> Spark:
        names = [column.split()[0] for column in schema.split(", ")]
        done = pickle.loads(pickle.dumps(function))(iter([self.given[:2], self.given[2:]]))
        self.found = [row for frame in done for row in frame[names].to_dict("records")]
        return self

    def collect(self) -> list[Any]:
        return [type("Row", (), {"asDict": lambda self, row=row: row})() for row in self.found]


def test_the_engine_of_the_page_on_spark_does_a_job(model: Path, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "def on_spark" in block]
    names: dict[str, Any] = {"spark": Spark()}
    exec(code[: code.index("\nencode(")], names)
    job, units = begun(model, ["a", None, "b", "c", "ab"], on_bad_row="skip")
    heard = Heard()
    names["on_spark"](job, units, heard)
    assert heard.rows == [2, 2, 1]
    assert all(job.is_done(unit) for unit in units)


ROWS = {"id": [7, 8, 9], "text": ["a", "bb", "abc"], "year": [1, None, 3], "other": ["x", "y", "z"]}
SCHEMA = pa.schema([("id", pa.int64()), ("text", pa.string()), ("year", pa.int64()), ("other", pa.string())])


@pytest.mark.parametrize("bring", ["table", "batch", "frame"])
def test_rows_that_an_engine_brings_get_the_columns_of_a_part(bring: str, model: Path) -> None:
    worker = Worker(of_rows(model, SCHEMA, Encode(keep=("year",))))
    table = pa.table(ROWS, SCHEMA)
    rows = {"table": table, "batch": table.to_batches()[0], "frame": table.to_pandas()}[bring]
    found = worker.table(rows, [])
    assert found.schema == worker.job.schema(3)
    assert found.to_pydict() == {
        "id": ["7", "8", "9"],
        "text": ["a", "bb", "abc"],
        "year": [1, None, 3],
        "vector": [[1, 0, 0], [0, 2, 0], [1, 1, 1]],
    }


def test_frames_go_through_as_in_map_in_pandas(model: Path) -> None:
    worker = Worker(of_rows(model, SCHEMA, Encode(on_bad_row="skip", texts=False)))
    rejected: list[Rejected] = []

    def vectors(frames: Any) -> Any:
        for frame in frames:
            yield worker.table(frame, rejected).to_pandas()

    given = pd.DataFrame({"id": ["p", "q", "r"], "text": ["a", None, "c"]})
    found = list(vectors([given[:2], given[:0], given[2:]]))
    assert [list(frame["id"]) for frame in found] == [["p"], [], ["r"]]
    assert [vector.tolist() for frame in found for vector in frame["vector"]] == [[1, 0, 0], [0, 0, 1]]
    assert [item.line for item in rejected] == ['a batch of rows row 2: "text" is null, expected a text.']


def test_rows_that_cannot_be_used_are_errors_with_their_place(model: Path) -> None:
    worker = Worker(of_rows(model, SCHEMA))
    with pytest.raises(DataError, match=r'^a batch of rows row 2: "text" is empty\. Fix the row'):
        worker.table(pd.DataFrame({"id": ["p", "q"], "text": ["a", " "]}), [])
    with pytest.raises(DataError, match=r'^a batch of rows: there is no column "id"; it has "text"\.'):
        worker.table(pa.table({"text": ["a"]}), [])
    with pytest.raises(DataError, match=r"^a batch of rows: a column is not of one type"):
        worker.table(pd.DataFrame({"id": ["p", 3], "text": ["a", "b"]}), [])
    worker = Worker(of_rows(model, SCHEMA, Encode(keep=("year",))))
    with pytest.raises(DataError, match=r'^a batch of rows: "year" is not of the type int64 that the job has \('):
        worker.table(pd.DataFrame({"id": ["p"], "text": ["a"], "year": [1.5]}), [])
    with pytest.raises(DataError, match=r'^the rows: there is no column "body"; it has "id", "text"'):
        of_rows(model, SCHEMA, Encode(text_column="body"))
