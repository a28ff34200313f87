"""Property: a job on a real cluster of Ray whose workers or driver are killed is the one that was not."""

from __future__ import annotations

import os
import random
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent))

from forking import SOURCE, Forks
from test_kills import finished, vectors, write_rows

from bothways.cli import main
from bothways.corpus.on_ray import OnRay
from bothways.errors import ConfigError

pytest.importorskip("ray")
KILLS = 20
CLUSTER = """
import sys, ray
ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, _node_ip_address="127.0.0.1")
print("at", ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """Of everything that speaks to the cluster."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, (SOURCE, os.environ.get("PYTHONPATH")))),
    }


@pytest.fixture(scope="module")
def cluster(environment: dict[str, str]) -> Iterator[str]:
    """The address of a cluster of this machine, which outlives drivers; it ends with its stdin."""
    head = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    for line in head.stdout:
        if line.startswith("at "):
            yield line.split()[1]
            break
    head.stdin.close()
    head.wait(60)
    head.stdout.close()


@pytest.fixture(scope="module")
def forks(environment: dict[str, str]) -> Iterator[Forks]:
    forks = Forks(**environment)
    yield forks
    forks.close()


def until(true: Callable[[], Any], seconds: float = 200) -> Any:
    """What is true at last."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end
        time.sleep(0.002)
    return found


def at_work(out: Path) -> dict[int, Path]:
    """Processes that are writing a part: its name has the pid."""
    return {int(path.stem.rpartition("-")[2]): path for path in out.glob(".part-*.partial")}


def kill_a_worker(out: Path, dead: set[int] | None = None) -> int:
    """SIGKILL one that is not yet dead in the middle of a unit: what it was writing stays."""
    dead = set() if dead is None else dead
    while True:
        pid = until(lambda: next((pid for pid in at_work(out) if pid not in dead), None))
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        dead.add(pid)
        if pid in at_work(out):
            return pid


def wait_for_the_end_of_workers(out: Path) -> None:
    """Those of a driver that was killed end a moment after it."""
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in at_work(out)))


def assert_same(out: Path, expected: Path) -> None:
    ids, found = vectors(out)
    expected_ids, known = vectors(expected)
    assert ids == expected_ids
    assert len(set(ids)) == len(ids)
    np.testing.assert_allclose(found, known, atol=1e-5, rtol=0)
    assert not list(out.glob(".*.partial"))


def test_begun_locally_its_driver_killed_on_ray_and_then_a_worker_equals_uninterrupted(
    encoder: Path, forks: Forks, cluster: str, tmp_path: Path
) -> None:
    said, out = tmp_path / "said", tmp_path / "out"
    job = {
        "encoder": encoder,
        "inputs": [write_rows(tmp_path / "rows.jsonl", 4001, bad_every=601)],
        "settings": {"rows_per_part": 100, "on_bad_row": "skip"},
        "said": said,
    }
    on_ray = {**job, "out": out, "ray": {"actors": 2, "address": cluster}}
    assert forks.run({**job, "out": tmp_path / "whole"})[0] == 0, said.read_text()
    assert forks.run({**job, "out": out, "kill": "after"})[0] == -signal.SIGKILL
    local = finished(out)
    assert len(local) == 2

    code, _ = forks.run(on_ray, (0, 0.0), lambda driver: until(lambda: len(finished(out)) >= 6))
    assert code == -signal.SIGKILL, said.read_text()
    wait_for_the_end_of_workers(out)
    killed = finished(out)
    assert local.items() <= killed.items()
    assert len(killed) < 30

    workers: list[int] = []

    def kill(driver: int) -> None:
        until(lambda: len(finished(out)) >= len(killed) + 2)
        workers.append(kill_a_worker(out))

    assert forks.run(on_ray, meanwhile=kill)[0] == 0, said.read_text()
    assert len(workers) == 1
    assert killed.items() <= finished(out).items()
    assert_same(out, tmp_path / "whole")
    assert len((out / "rejected.jsonl").read_text().splitlines()) == 7


def test_a_cluster_of_its_own_names_a_bad_row_and_what_it_did_goes_on_locally(
    encoder: Path, environment: dict[str, str], forks: Forks, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 703, bad_every=601)
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[6:]))
    out, said = tmp_path / "out", tmp_path / "said"
    flags = ["--rows-per-part", "100", "--dtype", "float32", "--engine", "ray", "--processes", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "bothways", "encode", str(encoder), str(rows), "--out", str(out), *flags],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    # That its core is to be silent is the one thing that Ray cannot keep to itself.
    shown = (
        r'(.*Set ray log level.*\n)?(encode: .* left\n)*DataError: rows\.jsonl line 601: "text" is null, .* skip .*\n'
    )
    assert re.fullmatch(shown, done.stderr), done.stderr
    assert done.stdout == ""
    before = finished(out)
    assert 4 <= len(before) < 7
    job = {"encoder": encoder, "inputs": [rows], "settings": {"rows_per_part": 100, "on_bad_row": "skip"}}
    assert forks.run({**job, "out": out, "said": said})[0] == 0, said.read_text()
    assert before.items() <= finished(out).items()
    assert vectors(out)[0] == [str(number) for number in range(6, 703) if number != 606]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_random_moments_workers_and_drivers(
    encoder: Path, forks: Forks, cluster: str, tmp_path: Path
) -> None:
    """Of 100,000 rows; every driver loses a worker and goes on before it is killed itself."""
    said, out = tmp_path / "said", tmp_path / "out"
    job = {
        "encoder": encoder,
        "inputs": [write_rows(tmp_path / "rows.jsonl", 100_000, bad_every=601)],
        "settings": {"rows_per_part": 1000, "on_bad_row": "skip"},
        "said": said,
    }
    assert forks.run({**job, "out": tmp_path / "whole"})[0] == 0, said.read_text()
    draw = random.Random(6)
    kept: dict[str, tuple[int, int]] = {}

    def kill(driver: int) -> None:
        until(lambda: at_work(out))
        time.sleep(draw.uniform(0, 1))
        kill_a_worker(out)
        more = len(finished(out)) + draw.randint(1, 4)
        until(lambda: len(finished(out)) >= more)
        time.sleep(draw.uniform(0, 0.3))

    on_ray = {**job, "out": out, "ray": {"actors": 2, "address": cluster}}
    for _ in range(KILLS // 2):
        assert forks.run(on_ray, (0, 0.0), kill)[0] == -signal.SIGKILL, said.read_text()
        wait_for_the_end_of_workers(out)
        now = finished(out)
        assert kept.items() <= now.items()
        assert len(kept) < len(now) < 100
        kept = now
    assert forks.run(on_ray)[0] == 0, said.read_text()
    assert kept.items() <= finished(out).items()
    assert_same(out, tmp_path / "whole")


@pytest.mark.slow
def test_a_unit_over_which_three_workers_die_ends_the_job(
    encoder: Path, forks: Forks, cluster: str, tmp_path: Path
) -> None:
    said, out = tmp_path / "said", tmp_path / "out"
    inputs = [write_rows(tmp_path / "rows.jsonl", 9001)]
    job = {"encoder": encoder, "inputs": inputs, "settings": {"rows_per_part": 9001}, "said": said, "out": out}
    dead: set[int] = set()

    def kill(driver: int) -> None:
        for _ in range(3):
            kill_a_worker(out, dead)

    assert forks.run({**job, "ray": {"actors": 1, "address": cluster}}, meanwhile=kill)[0] == 1
    last = said.read_text().splitlines()[-1]
    assert "JobError: 3 workers died over unit 0 (rows.jsonl, rows 1 to 9,001): " in last
    assert all(f"-{pid}" in last for pid in dead)
    assert forks.run(job)[0] == 0, said.read_text()
    assert len(vectors(out)[0]) == 9001


def test_what_ray_cannot_do_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    call = ["encode", "enc", "rows.txt", "--out", "out"]
    for flags, said in [
        (["--engine", "ray", "--devices", "cpu"], "encode: --engine ray gives every process its device. Say how many"),
        (["--ray-address", "h:1"], "encode: --ray-address h:1 is for --engine ray. Add that, or leave it out."),
    ]:
        with pytest.raises(SystemExit) as ended:
            main([*call, *flags])
        assert ended.value.code == 2
        assert said in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r'device "cuda:1"\. Ray gives each actor its GPU: use cuda, or cpu\.'):
        OnRay(device="cuda:1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package `ray`\. Install it: pip install 'bothways\[ray\]'\."):
        OnRay()


def test_an_address_where_nobody_is_is_named(encoder: Path, forks: Forks, tmp_path: Path) -> None:
    said = tmp_path / "said"
    job = {"encoder": encoder, "inputs": [write_rows(tmp_path / "rows.jsonl", 3)], "settings": {}, "said": said}
    assert forks.run({**job, "out": tmp_path / "out", "ray": {"address": "127.0.0.1:1"}})[0] == 1
    assert "ConfigError: no Ray cluster answers at 127.0.0.1:1 (" in said.read_text().splitlines()[-1]
