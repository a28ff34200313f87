"""Contract: how switches are written, which recipes they make, and what is said of those that are wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bothways.errors import ConfigError
from bothways.recipe import read
from bothways.recipe.switches import read_switches, seeded, variants

RECIPE = """\
base: embedded
stages:
  - mntp: {data: texts.txt, steps: 2}
  - supervised: {data: examples.jsonl, steps: 3}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    for name in ("texts.txt", "examples.jsonl"):
        (tmp_path / name).touch()
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path / "recipe.yaml"


def grid(recipe: Path, *words: str) -> list[dict[str, Any]]:
    checked = read(recipe)
    return [dict(one.values) for one in variants(checked, read_switches(words, checked))]


def test_names_alone_take_all_sensible_values(recipe: Path) -> None:
    cells = grid(recipe, "direction,pooling,mntp")
    assert len(cells) == 12
    assert cells[0] == {"direction": "causal", "pooling": "mean", "mntp": "without"}
    assert [cell["pool_over"] for cell in grid(recipe, "pool_over")] == ["all", "text"]
    assert [cell["mntp.whole_words"] for cell in grid(recipe, "mntp.whole_words")] == ["false", "true"]
    assert [cell["mntp.mask_scheme"] for cell in grid(recipe, "mntp.mask_scheme")] == ["bert", "all"]


def test_values_reach_the_settings_of_their_stage(recipe: Path) -> None:
    checked = read(recipe)
    words = ["direction=causal", "2-supervised.temperature=5e-2", "mntp.max_length=null,7", "convert.normalize=false"]
    first, second = variants(checked, read_switches(words, checked))
    assert str(second) == "direction=causal 2-supervised.temperature=0.05 mntp.max_length=7 convert.normalize=false"
    assert (first.recipe.convert.direction, first.recipe.convert.normalize) == ("causal", False)
    assert [step.settings.max_length for step in first.recipe.steps] == [None, None]
    assert [step.settings.max_length for step in second.recipe.steps] == [7, None]
    assert second.recipe.steps[1].settings.temperature == 0.05
    together = ["mntp.mask_schedule=linear", "mntp.mask_rate_end=0.4"]
    (both,) = variants(checked, read_switches(together, checked))
    assert both.recipe.steps[0].settings.mask_rate_of(1) == 0.4


def test_settings_of_a_stage_that_is_left_out_make_no_rows_of_their_own(recipe: Path) -> None:
    assert grid(recipe, "mntp", "mntp.steps=1,2") == [
        {"mntp": "without", "mntp.steps": None},
        {"mntp": "with", "mntp.steps": 1},
        {"mntp": "with", "mntp.steps": 2},
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("dirction",), '--over: "dirction" is nothing that recipe.yaml has. Did you mean "direction"?'),
        (("simcse",), '--over: "simcse" is nothing that recipe.yaml has.'),
        (("temperature=0.1",), 'Did you mean "supervised.temperature"?'),
        (
            ("zq",),
            "Known: direction, pooling, pool_over, mntp, supervised, and settings of stages, such as "
            "supervised.size_exponent.",
        ),
        (
            ("mntp.mask_rat=0.1",),
            '--over mntp.mask_rat: "mask_rat" is no setting of mntp. Did you mean "mask_rate"?',
        ),
        (("convert.poling=mean",), '"poling" is no setting of convert. Did you mean "pooling"?'),
        (("supervised.temperature",), "which values? Write them behind it: supervised.temperature=VALUE,VALUE."),
        (
            ("pooling=mean,mntp",),
            '--over pooling: a value is "mntp", expected one of "mean", "weighted_mean", "last", "cls". Another switch '
            "is an argument of its own.",
        ),
        (("mntp=maybe",), 'a value is "maybe", expected one of "with", "without".'),
        (("mntp.steps=ten",), '--over mntp.steps: a value is "ten", expected a whole number.'),
        (("mntp.steps=",), '--over mntp.steps: a value is "", expected a whole number.'),
        (("pooling=last,last",), '--over pooling: the value "last" stands twice. Keep one.'),
        (("mntp,pooling", "mntp"), '--over: "mntp" stands twice. Keep one.'),
        (
            ("supervised.temperature=0.1,-1",),
            "--over: supervised.temperature=-1.0 does not fit recipe.yaml: Supervised(temperature=-1.0): expected 0 <",
        ),
        (
            ("direction", "convert.windows=full"),
            '--over: direction=causal convert.windows=full does not fit recipe.yaml: windows="full" opens or narrows',
        ),
    ],
)
def test_wrong_switches_are_said(recipe: Path, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        grid(recipe, *words)
    assert message in str(raised.value)


def test_a_seed_reaches_every_stage(recipe: Path) -> None:
    checked = read(recipe)
    assert [step.settings.seed for step in seeded(checked, 7).steps] == [7, 7]
    assert seeded(checked, 0) == checked


def test_a_merge_may_be_left_out_but_no_stage_before_one_that_stays(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a text\n")
    (tmp_path / "recipe.yaml").write_text(
        "base: embedded\nstages:\n  - mntp: {data: a.txt}\n  - simcse: {data: a.txt}\n  - merge: {stages: [1, 2]}\n"
    )
    recipe = read(tmp_path / "recipe.yaml")
    found = variants(recipe, read_switches(["merge"], recipe))
    assert [len(variant.recipe.steps) for variant in found] == [2, 3]
    with pytest.raises(ConfigError, match=r"--over: recipe\.yaml merges stages, which cannot be left out then"):
        variants(recipe, read_switches(["mntp"], recipe))
