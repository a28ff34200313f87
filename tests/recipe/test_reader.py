"""Contract: whatever is wrong in a recipe is named with file, line, key and the way out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bothways.data import Source
from bothways.errors import ConfigError
from bothways.recipe import MergeStep, read
from bothways.stages.convert import Convert
from bothways.stages.merge_settings import Merge
from bothways.training.settings import MNTP, Supervised

GOOD = """\
base: embedded
convert:
  pooling: weighted_mean
  prompts:
    query: "query: "
stages:
  - mntp:
      data: texts.txt
      steps: 20
      learning_rate: 5e-4
      mask_token: "_"
      block_size: null
  - supervised:
      data: [pairs.jsonl, pairs.jsonl]
      held_out: pairs.jsonl
      on_bad_row: skip
evaluate:
  - pairs.jsonl
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("texts.txt", "pairs.jsonl"):
        (tmp_path / name).touch()
    return tmp_path


def write(folder: Path, content: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(content)
    return path


def test_a_good_recipe_becomes_typed_settings(folder: Path) -> None:
    recipe = read(write(folder, GOOD))
    assert recipe.base == "embedded"
    assert recipe.convert == Convert(pooling="weighted_mean", prompts={"query": "query: "})
    first, second = recipe.steps
    assert first.settings == MNTP(steps=20, learning_rate=5e-4, mask_token="_", block_size=None)
    assert second.settings == Supervised()
    pairs = Source(path=str(folder / "pairs.jsonl"))
    assert first.files.data == (Source(path=str(folder / "texts.txt")),)
    assert second.files.data == (pairs, pairs)
    assert (second.files.held_out, second.files.on_bad_row) == ((pairs,), "skip")
    assert recipe.tasks == (folder / "pairs.jsonl",)


def test_sources_have_weights_columns_and_splits(folder: Path) -> None:
    data = """
        - texts.txt?weight=0.5
        - {path: "*.txt", weight: 2, column: body}
        - {path: "hub:o/n", split: test, config: raw, revision: main}"""
    step = read(write(folder, GOOD.replace("data: texts.txt", f"data:{data}"))).steps[0]
    assert step.files.data == (
        Source(path=str(folder / "texts.txt"), weight=0.5),
        Source(path=str(folder / "*.txt"), weight=2.0, column="body"),
        Source(path="hub:o/n", split="test", config="raw", revision="main"),
    )


def test_sources_of_examples_say_how_they_are_learnt_from(folder: Path) -> None:
    data = """
        - pairs.jsonl?in_batch=false&query_instruction=Find it
        - {path: pairs.jsonl, symmetric: true, across: false, temperature: 0.1}
        - {path: pairs.jsonl, score_max: 5, document_instruction: d}"""
    step = read(write(folder, GOOD.replace("data: [pairs.jsonl, pairs.jsonl]", f"data:{data}"))).steps[1]
    path = str(folder / "pairs.jsonl")
    assert step.files.data == (
        Source(path=path, in_batch=False, query_instruction="Find it"),
        Source(path=path, symmetric=True, across=False, temperature=0.1),
        Source(path=path, score_max=5.0, document_instruction="d"),
    )


def test_a_base_beside_the_recipe_is_found_there(folder: Path) -> None:
    (folder / "llama").mkdir()
    assert read(write(folder, "base: llama\n")).base == str(folder / "llama")


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        (
            "steps: 20",
            "mask_ratio: 0.2",
            'recipe.yaml line 9: unknown key "mask_ratio" in mntp. Did you mean "mask_rate"?',
        ),
        ("convert:", "covert:", 'recipe.yaml line 2: unknown key "covert" in the recipe. Did you mean "convert"?'),
        ("- mntp:", "- mtnp:", 'recipe.yaml line 7: unknown key "mtnp" in stages. Did you mean "mntp"?'),
        ("steps: 20", "steps: many", 'recipe.yaml line 9: "steps" in mntp is "many", expected a whole number.'),
        ("steps: 20", "steps: 2.5", 'recipe.yaml line 9: "steps" in mntp is 2.5, expected a whole number.'),
        ("steps: 20", 'steps: "20"', 'recipe.yaml line 9: "steps" in mntp is "20", expected a whole number.'),
        ("steps: 20", "steps: [1]", 'recipe.yaml line 9: "steps" in mntp is a list, expected a whole number.'),
        (
            "steps: 20",
            "tune: lorra",
            'line 9: "tune" in mntp is "lorra", expected one of "lora", "dora", "qlora", "full".',
        ),
        (
            "steps: 20",
            "mask_schedule: linear",
            'line 9: MNTP(mask_schedule="linear", mask_rate_end=None): mask_rate_end',
        ),
        (
            "steps: 20",
            "mask_rate_end: 0.5",
            'line 9: MNTP(mask_schedule="fixed", mask_rate_end=0.5): mask_rate_end goes',
        ),
        ("steps: 20", "steps:", 'recipe.yaml line 9: "steps" in mntp is empty, expected a whole number.'),
        ("steps: 20", "mask_rate: 2", "recipe.yaml line 9: MNTP(mask_rate=2.0): expected 0 < mask_rate < 1."),
        (
            "steps: 20",
            "held_out_rates: [0.2, 1.5]",
            "recipe.yaml line 9: MNTP(held_out_rates=1.5): expected 0 < held_out_rates < 1.",
        ),
        ("steps: 20", "held_out_rates: [high]", '"held_out_rates" in mntp is a list, expected a number or a list of'),
        ("steps: 20", "train_head: 1", 'line 9: "train_head" in mntp is 1, expected true or false.'),
        ("steps: 20", "data: texts.txt", 'recipe.yaml line 9: "data" stands twice in mntp. Keep one.'),
        ("data: texts.txt", "data: text.txt", "line 8: data of mntp: text.txt does not exist. Paths are relative"),
        ("data: texts.txt", "data: []", "line 8: data of mntp is an empty list. Name a file."),
        ("data: texts.txt", "data: x/*.txt", "line 8: data of mntp: x/*.txt does not exist. Paths are relative"),
        ("data: texts.txt", "data: {weight: 2}", 'recipe.yaml line 8: "path" is missing in data of mntp. Name a file'),
        (
            "data: texts.txt",
            "data: [{path: texts.txt, wieght: 2}]",
            'line 8: unknown key "wieght" in data of mntp. Did you mean "weight"?',
        ),
        (
            "data: texts.txt",
            "data:\n        - path: texts.txt\n          weight: two",
            'recipe.yaml line 10: "weight" in data of mntp is "two", expected a number.',
        ),
        ("data: texts.txt", "data: {path: texts.txt, weight: 0}", "line 8: texts.txt: weight=0.0, expected a number"),
        ("data: texts.txt", "data: texts.txt?weigth=2", 'line 8: texts.txt?weigth=2: unknown option "weigth". Did you'),
        ("data: texts.txt", "data: {path: texts.txt, split: test}", 'line 8: texts.txt: "split" is for data sets of'),
        (
            "data: [pairs.jsonl,",
            "data: [{path: pairs.jsonl, column: a},",
            'line 14: data of supervised: pairs.jsonl: "column" is for texts; examples have columns of their own',
        ),
        (
            "data: texts.txt",
            "data: {path: texts.txt, in_batch: false}",
            'line 8: data of mntp: texts.txt: "in_batch" is for examples, of which each has a query and documents',
        ),
        (
            "data: [pairs.jsonl,",
            'data: [{path: pairs.jsonl, in_batch: "false"},',
            'line 14: "in_batch" in data of supervised is "false", expected true or false.',
        ),
        (
            "data: [pairs.jsonl,",
            "data: [{path: pairs.jsonl, temperature: -1},",
            "line 14: pairs.jsonl: temperature=-1.0, expected a number above 0.",
        ),
        (
            "data: [pairs.jsonl,",
            "data: [{path: pairs.jsonl, format: bier},",
            '"format" in data of supervised is "bier", expected one of "auto", "rows", "e5", "beir".',
        ),
        (
            "held_out: pairs.jsonl",
            "held_out: {path: pairs.jsonl, weight: 2}",
            "line 15: pairs.jsonl: weight=2, but what is held out is measured once. Leave it out.",
        ),
        ("data: texts.txt", "seed: 1", 'recipe.yaml line 7: "data" is missing in mntp. Name a file'),
        ("block_size: null", "block_size: x", '"block_size" in mntp is "x", expected a whole number or null.'),
        ("base: embedded", "{}", "not YAML"),
        ("base: embedded", "base: [a]", 'line 1: "base" in the recipe is a list, expected a text.'),
        ("evaluate:\n  - ", "evaluate: ", 'line 17: "evaluate" is "pairs.jsonl", expected a list of tasks.'),
        ("pooling: weighted_mean", "pooling: max", 'line 3: "pooling" in convert is "max", expected one of "mean"'),
    ],
)
def test_what_is_wrong_is_named(folder: Path, good: str, bad: str, message: str) -> None:
    assert GOOD.count(good) == 1
    with pytest.raises(ConfigError, match=re.escape(message)):
        read(write(folder, GOOD.replace(good, bad)))


def test_a_recipe_without_a_base_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match='line 1: "base" is missing'):
        read(write(folder, "stages: []\n"))


@pytest.mark.parametrize("content", ["", "# nothing\n"])
def test_an_empty_recipe_is_refused(folder: Path, content: str) -> None:
    with pytest.raises(ConfigError, match="the file is empty"):
        read(write(folder, content))


def test_a_missing_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path / "recipe.yaml")


def test_a_recipe_can_be_read_before_its_data_are_there(tmp_path: Path) -> None:
    recipe = read(write(tmp_path, GOOD), files_exist=False)
    assert recipe.steps[0].files.data == (Source(path=str(tmp_path / "texts.txt")),)
    assert recipe.tasks == (tmp_path / "pairs.jsonl",)


@pytest.mark.parametrize(("written", "rates"), [("[0.15, 5e-1]", (0.15, 0.5)), ("0.3", (0.3,)), ("[]", ())])
def test_mask_rates_are_a_list_or_one_number(folder: Path, written: str, rates: tuple[float, ...]) -> None:
    more = f"steps: 20\n      held_out_rates: {written}\n      mask_schedule: linear\n      mask_rate_end: 0.4"
    settings = read(write(folder, GOOD.replace("steps: 20", more))).steps[0].settings
    assert isinstance(settings, MNTP)
    assert settings.held_out_rates == rates
    assert settings.mask_rate_of(settings.steps - 1) == pytest.approx(0.4)


MERGED = """\
base: embedded
stages:
  - mntp: {data: texts.txt}
  - simcse: {data: texts.txt}
  - mntp: {data: texts.txt}
  - merge:
      stages: [1-mntp, 3, simcse]
      base: convert
      weights: [0.5, 1, 1]
"""


def test_a_merge_names_earlier_stages_by_folder_number_or_kind(folder: Path) -> None:
    recipe = read(write(folder, MERGED + "  - merge: {stages: [0, merge], t: 0.3}\n"))
    assert recipe.names == ["0-convert", "1-mntp", "2-simcse", "3-mntp", "4-merge", "5-merge"]
    first, second = recipe.steps[3:]
    assert first == MergeStep(Merge(weights=(0.5, 1, 1)), (1, 3, 2), 0)
    assert second == MergeStep(Merge(t=0.3), (0, 4))


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        (
            "3, simcse",
            "simcse",
            "line 9: Merge(weights=(0.5, 1, 1)): 2 encoders need as many weights. Give one",
        ),
        (
            "3, simcse",
            "2, 2-simcse",
            "recipe.yaml line 7: 2-simcse stands twice in stages of merge. Keep one, and give",
        ),
        (
            "3, simcse",
            "\n        mntp]",
            'recipe.yaml line 8: "mntp" in stages of merge is 1-mntp and 3-mntp. Say which.',
        ),
        (
            "3, simcse",
            "2-smcse",
            'recipe.yaml line 7: "2-smcse" in stages of merge is no stage before it. Did you mean "2-simcse"?',
        ),
        ("3, simcse", "4-merge", 'line 7: "4-merge" in stages of merge is no stage before it.'),
        ("3, simcse", "7", "line 7: 7 in stages of merge is no stage before it. Known: 0-convert, 1-mntp, 2-simcse, 3"),
        ("3, simcse", "2.5", '"stages" in merge is 2.5, expected a whole number or a text.'),
        ("[1-mntp, 3, simcse]", "1-mntp", '"stages" of merge is "1-mntp", expected a list of stages.'),
        (
            "stages: [1-mntp, 3, simcse]",
            "method: slerp",
            '"stages" is missing in merge. Name two or more of 0-convert, 1',
        ),
        ("base: convert", "base: 9", "line 8: 9 in base of merge is no stage before it."),
        ("weights: [0.5, 1, 1]", "t: 0.5", "line 9: Merge(t=0.5): t is for two encoders, found 3. Give weights."),
        ("weights: [0.5, 1, 1]", "method: sum", '"method" in merge is "sum", expected one of "linear", "slerp".'),
        ("weights: [0.5, 1, 1]", "data: texts.txt", 'line 9: unknown key "data" in merge.'),
    ],
)
def test_what_is_wrong_in_a_merge_is_named(folder: Path, good: str, bad: str, message: str) -> None:
    assert MERGED.count(good) == 1
    with pytest.raises(ConfigError, match=re.escape(message)):
        read(write(folder, MERGED.replace(good, bad).replace("]]", "]")))
