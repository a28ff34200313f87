"""Contract: what README.md tells a person to do works, and its generated parts are those that would be generated."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from pages import blocks, run

from bothways import loading
from bothways.cli import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ELSEWHERE = ("make", "bothways demo")
"""Commands that are run by the continuous integration itself, or by the demo's own tests."""


def commands() -> list[str]:
    lines = (line for block in blocks("console", README) for line in block.splitlines())
    given = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return list(dict.fromkeys(line for line in given if not line.startswith(ELSEWHERE)))


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_llama_folder: Path, real_texts: list[str]) -> Path:
    """A folder with the files that the README speaks of, where "embedded" is a random decoder, which is quicker."""
    texts = [text for text in real_texts if len(text) < 200]
    (tmp_path / "texts.txt").write_text("\n".join(texts[:40]) + "\n")
    rows = [{"query": text[:30], "positive": text} for text in texts[:17]]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    monkeypatch.setattr(loading, "EMBEDDED", tiny_llama_folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("ignore:.*were cut")
def test_the_python_runs(desk: Path) -> None:
    run(ROOT / "README.md")
    assert (desk / "my-encoder" / "modules.json").exists()


def test_the_python_of_downstream_runs_and_learns(desk: Path) -> None:
    printed = run(ROOT / "docs" / "downstream.md")
    losses = [float(text.removeprefix("loss ")) for text in printed if text.startswith("loss ")]
    assert len(printed) == 3
    assert len(losses) == 2
    # Guessing between two classes costs 0.69 nats.
    assert max(losses) < 0.69


@pytest.mark.filterwarnings("ignore:.*were cut")
def test_the_commands_run(desk: Path) -> None:
    for command in commands():
        program, *arguments = shlex.split(command)
        assert program == "bothways", command
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == 0, command
    assert {path.name for path in desk.glob("enc/*")} == {"0", "1", "2", "3", "4", "full"}
    assert (desk / "vectors" / "corpus.json").exists()


def test_the_commands_that_are_run_elsewhere_are_run_there() -> None:
    integration = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert all(f"make {target}" in integration for target in ("check", "test", "demo"))


def test_generated_parts_are_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import readme

    assert readme.generated(README) == README, f"run: {sys.executable} -m benchmarks readme"


def test_the_point_is_made_by_line_20() -> None:
    assert "convert(" in "\n".join(README.splitlines()[:20])


def test_the_tests_that_papers_are_mapped_to_exist() -> None:
    page = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page)
    assert len(named) > 10
    for file, test in named:
        assert f"def {test}" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{test}"
