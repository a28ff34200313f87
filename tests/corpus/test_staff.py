"""Contract of several processes: every unit is done, who dies is named and replaced, and none outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

sys.path.append(str(Path(__file__).parent))

from forking import SOURCE
from staffing import job, work

from bothways import Encoder
from bothways.corpus.inputs import Unit
from bothways.corpus.layout import read_manifest, tables, vectors_of
from bothways.corpus.staff import work_in_processes
from bothways.errors import DataError, JobError

UNITS = [Unit(number, 0, 10 + number, 0) for number in range(7)]


def run(out: Path, **orders: object) -> tuple[int, list[str]]:
    rows: list[int] = []
    said: list[str] = []
    work_in_processes(job(out, **orders), UNITS, ["cpu", None], rows.append, said.append, work=work)
    return sum(rows), said


def tries(out: Path) -> list[int]:
    return [len((out / f"tries-{unit.number}").read_text().splitlines()) for unit in UNITS]


def test_every_unit_is_done_once_and_both_processes_are_fed(tmp_path: Path) -> None:
    assert run(tmp_path) == (sum(unit.rows for unit in UNITS), [])
    assert tries(tmp_path) == [1] * 7
    seen = {(tmp_path / f"tries-{unit.number}").read_text() for unit in UNITS}
    assert {line.split()[1] for line in seen} == {"cpu", "None"}
    cores = len(os.sched_getaffinity(0))
    assert {line.split()[2] for line in seen} == {str(max(1, cores // 2))}


@pytest.mark.parametrize(("how", "said"), [("SIGKILL", "was killed by SIGKILL"), ("exit", "ended with exit code 3")])
def test_one_that_dies_is_named_and_its_unit_done_again(how: str, said: str, tmp_path: Path) -> None:
    rows, heard = run(tmp_path, die=3, how=how)
    assert rows == sum(unit.rows for unit in UNITS)
    assert tries(tmp_path) == [1, 1, 1, 2, 1, 1, 1]
    (line,) = heard
    assert line.startswith("worker ")
    assert line.endswith(f") {said} over unit 3; another one does it again (attempt 2 of 3)")


def test_a_unit_whose_processes_die_three_times_ends_the_job(tmp_path: Path) -> None:
    with pytest.raises(
        JobError, match=r"worker \d \(.*\) was killed by SIGKILL over unit 3, as 2 before it did\. Is there"
    ):
        run(tmp_path, die=3, how="SIGKILL", times=9)
    assert len((tmp_path / "tries-3").read_text().splitlines()) == 3


def test_what_a_unit_raises_is_raised(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows\.txt line 7: it is empty"):
        run(tmp_path, die=2, how="data")


def gone(pid: int) -> bool:
    """Whether a process has ended, waited for or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def until(true: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RANK", "WORLD", "LOCAL_"))}
    path = os.pathsep.join((SOURCE, str(Path(__file__).parent)))
    return {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def test_none_outlives_the_one_that_started_it(tmp_path: Path) -> None:
    words = [sys.executable, str(Path(__file__).with_name("staffing.py")), str(tmp_path)]
    parent = subprocess.Popen(words, env=environment())
    try:
        until(lambda: (tmp_path / "tries-0").exists() and (tmp_path / "tries-0").read_text().endswith("\n"))
        worker = int((tmp_path / "tries-0").read_text().split()[0])
        assert not gone(worker)
    finally:
        parent.kill()
        parent.wait()
    until(lambda: gone(worker), 20)


def check(out: Path, encoder: Path, texts: list[str]) -> None:
    manifest = read_manifest(out)
    columns = [part.to_pydict() for part in tables(out, manifest, ["id", "text"])]
    assert [text for part in columns for text in part["text"]] == texts
    assert [name for part in columns for name in part["id"]] == [f"a.txt:{i}" for i in range(1, len(texts) + 1)]
    found = np.concatenate([vectors_of(part["vector"]) for part in tables(out, manifest, ["vector"])])
    expected = Encoder.from_pretrained(encoder, device="cpu").encode_document(texts)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def write(path: Path, texts: list[str], times: int) -> list[str]:
    many = [f"{number} {text[:60]}" for number, text in enumerate(texts * times)]
    path.write_text("\n".join(many) + "\n", encoding="utf-8")
    return many


def test_two_real_processes_of_which_one_is_killed_give_the_same_vectors(
    encoder: Path, real_texts: list[str], tmp_path: Path
) -> None:
    texts = write(tmp_path / "a.txt", real_texts[:300], 5)
    words = [sys.executable, "-W", "ignore", "-m", "bothways", "encode", str(encoder), "a.txt", "--out", "out"]
    words += ["--processes", "2", "--rows-per-part", "100", "--device", "cpu"]
    parent = subprocess.Popen(words, env=environment(), cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    try:
        until(lambda: list((tmp_path / "out").glob("part-*")))
        # Not the one that multiprocessing starts to clean up behind all.
        workers = [
            pid for pid in children.read_text().split() if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        os.kill(int(workers[0]), signal.SIGKILL)
        _, said = parent.communicate(timeout=120)
    finally:
        parent.kill()
    assert parent.returncode == 0, said
    assert "was killed by SIGKILL over unit" in said
    assert "encode: 1,500 vectors in out" in said
    check(tmp_path / "out", encoder, texts)


def test_processes_of_a_launcher_share_the_units(encoder: Path, real_texts: list[str], tmp_path: Path) -> None:
    texts = write(tmp_path / "a.txt", real_texts[:100], 3)
    words = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
    ]
    words += ["bothways", "encode", str(encoder), "a.txt", "--out", "out", "--rows-per-part", "70"]
    done = subprocess.run(words, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("encode: 300 vectors in out") == 1
    check(tmp_path / "out", encoder, texts)
    assert len(list((tmp_path / "out").glob("part-*"))) == 5
    assert pq.read_metadata(tmp_path / "out" / "part-00004.parquet").num_rows == 20
