"""Property: a job that is killed anywhere and run again is the one that was not; its memory does not grow with rows."""

from __future__ import annotations

import json
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent))

from forking import Forks

from bothways.corpus.layout import ID, VECTOR, read_manifest, tables, vectors_of

KILLS = 20


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    forks = Forks()
    yield forks
    forks.close()


def write_rows(path: Path, rows: int, *, seed: int = 0, bad_every: int = 0) -> Path:
    """Rows of some words; every so many is null."""
    draw = random.Random(seed)
    words = ["how", "do", "I", "open", "a", "compressed", "file", "and", "read", "what", "is", "in", "it"]
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            text = " ".join(draw.choices(words, k=draw.randint(1, 7)))
            text = None if bad_every and number % bad_every == 5 else f"{number} {text}"
            file.write(json.dumps({"id": number, "text": text}) + "\n")
    return path


def vectors(folder: Path) -> tuple[list[str], np.ndarray]:
    manifest = read_manifest(folder)
    parts = list(tables(folder, manifest, [ID, VECTOR]))
    return [name for part in parts for name in part[ID].to_pylist()], np.concatenate(
        [vectors_of(part[VECTOR]) for part in parts]
    )


def finished(folder: Path) -> dict[str, tuple[int, int]]:
    """Of every part what changes when it is written again."""
    about = {path.name: path.stat() for path in folder.glob("part-*.parquet")}
    return {name: (found.st_mtime_ns, found.st_ino) for name, found in about.items()}


@pytest.mark.parametrize(
    ("rows", "rows_per_part"),
    [(3001, 35), pytest.param(100_000, 1000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])],
)
def test_killed_at_random_moments_and_run_again_equals_uninterrupted(
    rows: int, rows_per_part: int, encoder: Path, forks: Forks, tmp_path: Path
) -> None:
    """SIGKILL while it plans, opens the encoder, encodes, and around the moment at which a part takes its name."""
    inputs = [write_rows(tmp_path / "rows.jsonl", rows, bad_every=601)]
    settings = {"rows_per_part": rows_per_part, "on_bad_row": "skip"}
    job = {"encoder": encoder, "inputs": inputs, "settings": settings, "said": tmp_path / "said"}
    begun = time.monotonic()
    code, _ = forks.run({**job, "out": tmp_path / "whole"})
    seconds = time.monotonic() - begun
    assert code == 0, (tmp_path / "said").read_text()

    draw, out = random.Random(6), tmp_path / "out"
    # Some parts on, and then anywhere within the next ones, where there still are some.
    each = seconds / -(-rows // rows_per_part)
    moments = [(draw.randint(0, 3), draw.uniform(0, 2) * each) for _ in range(KILLS - 4)]
    placed: list[str | tuple[int, float]] = ["before", "after", *moments]
    draw.shuffle(placed)
    kept: dict[str, tuple[int, int]] = {}
    progress = []
    for moment in ["units.jsonl", "job.json", *placed]:
        named = isinstance(moment, str)
        code, _ = forks.run({**job, "out": out, "kill": moment if named else ""}, None if named else moment)
        assert code == -signal.SIGKILL, (moment, progress)
        now = finished(out)
        assert kept.items() <= now.items(), moment
        progress.append(len(now))
        kept = now
    assert progress[-1] < -(-rows // rows_per_part)
    assert len(set(progress)) > 9, progress
    assert forks.run({**job, "out": out})[0] == 0, (tmp_path / "said").read_text()
    assert kept.items() <= finished(out).items()

    ids, found = vectors(out)
    bad = {str(number) for number in range(rows) if number % 601 == 5}
    assert ids == [str(number) for number in range(rows) if str(number) not in bad]
    expected_ids, expected = vectors(tmp_path / "whole")
    assert ids == expected_ids
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    assert len((out / "rejected.jsonl").read_text().splitlines()) == len(bad)
    assert not list(out.glob(".*.partial"))


def test_memory_does_not_grow_with_rows(encoder: Path, forks: Forks, tmp_path: Path) -> None:
    peaks = []
    for rows in (2_000, 20_000):
        inputs = [write_rows(tmp_path / f"{rows}.jsonl", rows)]
        job = {"encoder": encoder, "inputs": inputs, "out": tmp_path / str(rows), "settings": {"rows_per_part": 1000}}
        code, peak = forks.run({**job, "said": tmp_path / "said"})
        assert code == 0, (tmp_path / "said").read_text()
        peaks.append(peak / 1024)
    # 18,000 vectors of 56 numbers alone are 4 MiB, their rows as objects many times that.
    assert peaks[1] - peaks[0] < 8, peaks
