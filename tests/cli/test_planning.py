"""Contract: `bothways plan` reads a recipe whose data are missing, prints every stage, and says what is wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bothways.cli import main

RECIPE = """\
base: embedded
convert:
  max_length: 64
stages:
  - mntp: {data: not-here.txt, batch_size: 5, block_size: 48, tokens_per_batch: 96, steps: 3}
  - simcse: {data: not-here.txt, batch_size: 4, max_length: 32, tune: full}
  - supervised: {data: nor-here.jsonl, batch_size: 3, max_length: null, negatives: 2}
"""


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def test_every_stage_is_planned_without_its_data(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("plan", recipe, "--gpu", "h200", "--count", 2, "--json", tmp_path / "plan.json") == 0
    shown = capsys.readouterr()
    for expected in (
        "1 mntp on 2 x h200",
        "2 simcse on 2 x h200",
        "3 supervised on 2 x h200",
        "GiB AdamW",
        "7,580,480",
    ):
        assert expected in shown.out
    assert len(re.findall(r"^\w+: as set, it fits; tokens_per_batch: ", shown.out, re.MULTILINE)) == 3
    assert "time: 40% of the peak in the NVIDIA H200" in shown.err
    stages = json.loads((tmp_path / "plan.json").read_text())["stages"]
    assert [(stage["rows"], stage["row_tokens"]) for stage in stages] == [(5, 48), (8, 32), (12, 64)]
    assert {stage["precision"] for stage in stages} == {"bfloat16"}
    assert all(stage["seconds"] > 0 for stage in stages)


def test_a_merge_is_no_training_and_keeps_its_number(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe.write_text(RECIPE.replace("  - supervised", "  - merge: {stages: [1, 2]}\n  - supervised"))
    assert call("plan", recipe, "--gpu", "h200") == 0
    shown = capsys.readouterr().out
    assert re.findall(r"(\d \w+) on 1 x h200", shown) == ["1 mntp", "2 simcse", "4 supervised"]


def test_without_a_gpu_it_is_this_machine(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bothways.hardware.matmul_rate", lambda device, dtype: 1e11)
    assert call("plan", recipe) == 0
    shown = capsys.readouterr()
    assert "1 mntp on 1 x this machine's" in shown.out
    assert "45% of the rate of matrix products that was measured just now" in shown.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--gpu", "h20"), 1, '"h20" is no accelerator that is known here. Did you mean "h200"?'),
        (("--gpu", "h200", "--count", "0"), 2, "plan: --count 0: expected at least one device."),
        (("--count", "8"), 2, "which devices? Name them with --gpu, for example --gpu h200."),
        (("--gpu", "h200", "--sharding", "fsdp"), 2, "--sharding fsdp spreads the weights over devices."),
    ],
)
def test_wrong_devices_are_said(
    recipe: Path, arguments: tuple[str, ...], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("plan", recipe, *arguments) == code
    shown = capsys.readouterr()
    assert message in " ".join(shown.err.split())
    assert not shown.out


@pytest.mark.parametrize(
    ("good", "bad", "code", "message"),
    [
        ("base: embedded", "base: ./no-such", 1, "./no-such is not a folder"),
        ("max_length: 64", "max_length: 6400", 1, "max_length=6400, but the model reads at most 512 tokens."),
        ("block_size: 48", "block_sise: 48", 1, 'unknown key "block_sise" in mntp. Did you mean "block_size"?'),
        (RECIPE[RECIPE.index("stages:") :], "", 2, "has no stages to plan."),
    ],
)
def test_wrong_recipes_are_said(
    recipe: Path, good: str, bad: str, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe.write_text(RECIPE.replace(good, bad))
    assert call("plan", recipe, "--gpu", "l4") == code
    assert message in " ".join(capsys.readouterr().err.split())
