"""Contract: a results file says how it was made, and the README's parts are made of results files alone."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from bothways.recipe import read

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def test_the_demos_results_are_read_and_framed(tmp_path: Path) -> None:
    from benchmarks import demo
    from benchmarks.frame import framed

    steps = {"tf-idf": 0.5, "causal decoder": 0.1, "+ supervised": 0.4}
    found = {
        "rows": [{"step": name, "ndcg@10": value} for name, value in steps.items()],
        "documentation": {},
        "recipe": {},
        "hardware": {"processor": "another", "threads": 7},
        "seconds": 1.5,
        "peak_memory_bytes": 2,
        "answers": [],
    }
    (tmp_path / "demo.json").write_text(json.dumps(found))
    findings = demo.measure(argparse.Namespace(done=tmp_path))
    assert findings.observed["ndcg@10 over causal decoder"] == 4.0
    assert findings.observed["ndcg@10 over tf-idf"] == 0.8
    written = framed(findings, "python -m benchmarks demo")
    assert written["command"] == "bothways demo"
    assert set(written) == {"versions", "commit", "command", "hardware", "rows", "ratios", "observed"}
    assert [row["step"] for row in written["rows"]] == list(steps)
    assert written["versions"]["torch"]
    assert written["hardware"] == found["hardware"]


def test_every_committed_result_has_the_frame() -> None:
    paths = list((ROOT / "benchmarks" / "results").glob("*.json"))
    assert paths
    for path in paths:
        found = json.loads(path.read_text(encoding="utf-8"))
        assert {"versions", "commit", "command", "hardware", "rows", "ratios", "observed"} == set(found), path.name
        # A file is named after its benchmark, and after a dash what was asked of it.
        name = path.stem.partition("-")[0]
        assert found["command"].startswith((f"python -m benchmarks {name} ", f"bothways {name}")), path.name


def test_a_readme_without_its_markers_is_not_silently_left_alone() -> None:
    from benchmarks import readme

    with pytest.raises(SystemExit, match="the markers of the part"):
        readme.generated("# a page\n")


def test_the_recipes_of_the_repository_are_valid(tmp_path: Path) -> None:
    paths = sorted((ROOT / "recipes").glob("*.yaml"))
    assert [path.stem for path in paths] == ["llm2vec-paper", "quickstart"]
    assert [step.stage for step in read(ROOT / "recipes" / "quickstart.yaml").steps] == ["mntp", "simcse", "supervised"]
    # The paper's data are not shipped; their names are enough to read the recipe.
    (tmp_path / "data").mkdir()
    for name in ("wikitext-103.txt", "wiki1m.txt", "e5.jsonl"):
        (tmp_path / "data" / name).touch()
    copy = tmp_path / "recipe.yaml"
    copy.write_text((ROOT / "recipes" / "llm2vec-paper.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    assert [step.settings.batch_size for step in read(copy).steps] == [32, 128, 512]
