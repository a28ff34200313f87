"""The benchmark of the server: all give the same vectors, and its figures are what their names say."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks import serve


def options(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    serve.arguments(parser)
    return parser.parse_args(given)


def test_figures_are_of_the_timed_rounds() -> None:
    rows = [
        {"variant": "bothways", "round": 0, "seconds": 99.0, "latencies": [99.0] * 2},
        {"variant": "bothways", "round": 1, "seconds": 1.0, "latencies": [float(one) for one in range(100)]},
        {"variant": "bothways", "round": 2, "seconds": 3.0, "latencies": [float(one) for one in range(100)]},
        {"variant": "peer", "round": 1, "seconds": 4.0, "latencies": [7.0] * 100},
    ]
    found = serve.summary(rows, 1000)
    assert found["seconds"] == {"bothways": 2.0, "peer": 4.0}
    assert found["texts/s"] == {"bothways": 50.0, "peer": 25.0}
    assert found["tokens/s"] == {"bothways": 500.0, "peer": 250.0}
    assert found["p50"] == {"bothways": 49.5, "peer": 7.0}
    assert found["p99"] == {"bothways": 99.0, "peer": 7.0}
    lines = serve.table({"observed": {serve.CONDITION: found}}).splitlines()
    assert lines[3].startswith("| peer | 25.0 (0.50x) | 250 | 7.00 | 7.00 |")


def test_a_server_with_other_vectors_is_noticed() -> None:
    samples = {"bothways": {"sample": [[1.0, 0.0]]}, "sentence-transformers, threads": {"sample": [[0.8, 0.6]]}}
    with pytest.raises(SystemExit, match=r"sentence-transformers, threads gives a vector with cosine 0\.800000"):
        serve.same_vectors(serve.conditioned(options()), samples)


def test_too_little_is_said_at_once() -> None:
    with pytest.raises(SystemExit, match=r"1 or more of each"):
        serve.measure(options("--clients", "0"))


def test_the_servers_are_measured_beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    # One process less to start.
    monkeypatch.setattr(serve, "KINDS", serve.KINDS[:1])
    findings = serve.measure(options("--tiny", "--rounds", "1", "--clients", "5", "--requests", "3"))
    found = findings.observed[serve.CONDITION]
    assert set(found["seconds"]) == {"bothways", *(f"sentence-transformers, {kind}" for kind in serve.KINDS)}
    assert [len(row["latencies"]) for row in findings.rows if row["round"]] == [15] * 2
    assert all(0 < found["p50"][name] <= found["p99"][name] <= found["seconds"][name] for name in found["seconds"])
    assert found["texts of a batch"] >= 1
    assert findings.ratios == {}
    assert len(serve.table({"observed": findings.observed}).splitlines()) == 4
