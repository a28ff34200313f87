"""Contract: what a token costs and what memory is held is told by the number of texts, measured in real processes."""

from __future__ import annotations

import argparse
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks import growth
from benchmarks.growth import CALL, JOB, arguments, grown, measure, table, texts


def options(given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    arguments(parser)
    return parser.parse_args(given.split())


def test_a_call_and_a_job_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    real = growth._once
    found_once: dict[str, dict[str, float]] = {}

    def once(work: str, folder: Path, count: int) -> dict[str, float]:
        """Each kind of work once, the smaller size: a process takes its time to start."""
        if work not in found_once:
            found_once[work] = real(work, folder, count)
        return found_once[work]

    monkeypatch.setattr(growth, "_once", once)
    found = measure(options("--sizes 60 300 --rounds 1"))
    assert [(row["work"], row["texts"]) for row in found.rows] == [(CALL, 60), (CALL, 300), (JOB, 60), (JOB, 300)]
    assert all(row["tokens"] > 2 * row["texts"] and row["memory"] > 2**20 for row in found.rows)
    assert all(row["seconds"] > 0 for row in found.rows if row["work"] == CALL)
    assert "| 300 |" in table({"observed": found.observed})


def test_growth_is_told_by_the_largest_and_the_smallest() -> None:
    def row(work: str, count: int, seconds: float, memory: int) -> dict[str, Any]:
        return {"work": work, "texts": count, "tokens": 10 * count, "seconds": seconds, "memory": memory}

    rows = [row(JOB, 1000, 0.2, 5), row(JOB, 1000, 0.1, 6), row(JOB, 100_000, 11.0, 50), row(JOB, 1_000_000, 150.0, 60)]
    found = grown(rows)[JOB]
    assert found["CPU microseconds per token"] == pytest.approx({1000: 10.0, 100_000: 11.0, 1_000_000: 15.0})
    assert found["time per token, 1,000,000 texts to 1,000"] == pytest.approx(1.5)
    assert found["memory, 1,000,000 texts to 100,000"] == pytest.approx(1.2)


def test_texts_are_short_and_differ() -> None:
    some = list(islice(texts(), 3000))
    assert len(set(some)) > 2950
    assert all(2 <= len(text.split()) <= 6 for text in some)


def test_sizes_that_say_nothing_are_refused() -> None:
    with pytest.raises(SystemExit, match=r"two --sizes above 10 at least"):
        measure(options("--sizes 5 100"))
