"""Contract: `bothways ablate` prints one table, tab separated where stdout is no terminal; exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bothways.cli import main, tables
from bothways.evaluation.tables import Row

RECIPE = """\
base: {base}
convert: {{max_length: 60}}
stages:
  - supervised: {{data: examples.jsonl, steps: 2, batch_size: 3, held_out_items: 0, precision: fp32}}
evaluate: [pairs.jsonl]
"""


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


@pytest.fixture
def recipe(tmp_path: Path, tiny_llama_folder: Path, real_texts: list[str]) -> Path:
    texts = [text for text in real_texts if len(text) < 120]
    rows = [{"query": text[:25], "positive": text} for text in texts[:7]]
    (tmp_path / "examples.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    pairs = [{"s1": texts[i], "s2": texts[i + 1], "score": i % 3} for i in range(9)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)) + "\n")
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(base=tiny_llama_folder))
    return tmp_path / "recipe.yaml"


def test_the_table_is_for_programs_and_goes_to_a_file_too(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--out", tmp_path / "grid", "--json", tmp_path / "grid.json")
    assert call("ablate", recipe, "--over", "direction", "supervised=with", "--over", "pooling=mean", *options) == 0
    shown = capsys.readouterr()
    heads, *lines = [line.split("\t") for line in shown.out.splitlines()]
    assert heads[:3] == ["direction", "supervised", "pooling"]
    assert heads[3].endswith(" spearman")
    assert [line[:3] for line in lines] == [["causal", "with", "mean"], ["bidirectional", "with", "mean"]]
    found = json.loads((tmp_path / "grid.json").read_text())
    assert [float(line[3]) for line in lines] == [row[heads[3]] for row in found["rows"]]
    assert found == json.loads((tmp_path / "grid" / "ablation.json").read_text())
    assert (found["recipe"], found["over"]) == ("recipe.yaml", ["direction", "supervised=with", "pooling=mean"])
    assert all((tmp_path / "grid" / folder).is_dir() for cell in found["cells"] for folder in cell["folders"])
    assert "2 of 2: direction=bidirectional supervised=with pooling=mean" in shown.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "ablate: --over is missing. Name what to vary, for example --over direction,pooling,mntp."),
        (("--over", "mntp"), 1, 'ConfigError: --over: "mntp" is nothing that recipe.yaml has.'),
        (("--over", "supervised", "--seeds", "0,one"), 2, 'ablate: --seeds: "one" is no whole number.'),
    ],
)
def test_wrong_usage_is_said(
    recipe: Path, arguments: tuple[str, ...], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("ablate", recipe, *arguments, "--out", recipe.parent / "grid") == code
    shown = capsys.readouterr()
    assert message in " ".join(shown.err.split())
    assert not shown.out
    assert not (recipe.parent / "grid").exists()


def test_on_a_terminal_it_is_a_table_with_a_title(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No test has a terminal: stdout says that it is one."""
    rows: list[Row] = [{"mntp": "with", "task ndcg@10": 0.12345, "task ndcg@10 ±": None}]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    tables.sheet("A title", rows)
    shown = capsys.readouterr().out
    assert "A title" in shown
    assert "0.123" in shown
    assert "\t" not in shown
    monkeypatch.undo()
    tables.sheet("A title", rows)
    assert capsys.readouterr().out == "mntp\ttask ndcg@10\ttask ndcg@10 ±\nwith\t0.12345\t\n"
