"""Contract: the engines are measured in turn on the same texts, and what does not run here is said, not left out."""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def given(*arguments: str) -> argparse.Namespace:
    from benchmarks import engines

    parser = argparse.ArgumentParser()
    engines.arguments(parser)
    return parser.parse_args(arguments)


def test_every_engine_is_measured_or_its_reason_is_said(tmp_path: Path, real_texts: list[str]) -> None:
    from benchmarks import engines

    rows = [
        {"s1": a, "s2": b, "score": i % 6}
        for i, (a, b) in enumerate(zip(real_texts[:9], real_texts[5:14], strict=True))
    ]
    (tmp_path / "sts-b").mkdir()
    (tmp_path / "sts-b" / "test.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    found = engines.measure(given("--data", str(tmp_path), "--tiny", "--rounds", "2"))
    timed = [row for row in found.rows if "seconds" in row]
    names = {row["engine"] for row in timed}
    assert names | set(found.observed["not measured"]) == set(engines.ENGINES)
    assert not names & set(found.observed["not measured"])
    # In turn, and the first pass is not kept.
    assert [row["engine"] for row in timed[: 2 * len(names)]] == [*dict.fromkeys(row["engine"] for row in timed)] * 2
    assert {row["round"] for row in timed} == {1, 2}
    loss = found.observed["loss"]
    assert loss["torch, float32"]["spearman lost"] == 0
    assert loss["onnxruntime, float32"]["cosine, lowest"] == pytest.approx(1, abs=1e-5)
    assert 0.9 < loss["onnxruntime, int8"]["cosine, lowest"] < 0.99999
    for condition, speed in found.observed["tokens a second, median"].items():
        seconds = sorted(
            row["seconds"] for row in timed if (row["engine"], row["condition"]) == ("torch, float32", condition)
        )
        tokens = next(row["tokens"] for row in timed if row["condition"] == condition)
        assert speed["torch, float32"] == pytest.approx((tokens / seconds[0] + tokens / seconds[1]) / 2)
    lines = engines.table({"observed": found.observed}).splitlines()
    assert len(lines) == 2 + len(engines.ENGINES)
    assert "(1.00x)" in lines[2]
    for name, reason in found.observed["not measured"].items():
        assert any(name in line and reason in line for line in lines)


def test_what_cannot_be_measured_is_said_at_once(tmp_path: Path) -> None:
    from benchmarks import engines

    with pytest.raises(SystemExit, match=r"sts-b/test\.jsonl\.gz is not there\. Name the folder"):
        engines.measure(given("--data", str(tmp_path)))
    with pytest.raises(SystemExit, match="--rounds 0, expected 1 or more"):
        engines.measure(given("--data", str(tmp_path), "--rounds", "0"))
