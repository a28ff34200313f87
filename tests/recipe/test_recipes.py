"""Contract: every recipe of the repository resolves to the last key, and its stages run, on a tiny decoder."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from bothways import Encoder
from bothways.data import Source
from bothways.recipe import Recipe, read, run
from bothways.recipe.switches import read_switches, variants

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
NAMES = sorted(str(path.relative_to(RECIPES)) for path in RECIPES.rglob("*.yaml"))
PAPER = {
    "mntp": {"steps": 1000, "batch_size": 32, "block_size": 512, "learning_rate": 5e-5, "lora_r": 16, "lora_alpha": 32},
    "simcse": {"steps": 1000, "batch_size": 128, "max_length": 128, "learning_rate": 3e-5, "temperature": 0.05},
    "supervised": {"steps": 1000, "batch_size": 512, "max_length": 512, "learning_rate": 2e-4, "warm_up": 0.3},
}
"""LLM2Vec (arXiv 2404.05961), sec. 2 and 4, and its appendix."""
SHORT = {"steps": 2, "batch_size": 4, "precision": "fp32", "held_out_items": 4, "evaluate_every": 0}


def resolved(name: str, folder: Path) -> Recipe:
    """The recipe, read where the files that it names stand empty: its data are not shipped."""
    text = (RECIPES / name).read_text(encoding="utf-8")
    (folder / "data").mkdir()
    for path in re.findall(r"(?:data|path): data/([\w.-]+)", text):
        (folder / "data" / path).touch()
    if (RECIPES / Path(name).stem).is_dir():
        shutil.copytree(RECIPES / Path(name).stem, folder / Path(name).stem)
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    return read(folder / "recipe.yaml")


def test_there_is_one_for_each_decoder_of_the_paper_and_for_what_came_after() -> None:
    paper = ["llama-2-7b", "llama-3-8b", "mistral-7b", "sheared-llama-1.3b"]
    modern = ["lfm2-350m", "qwen3-0.6b-e5", "qwen3-0.6b"]
    assert [Path(name).stem for name in NAMES] == [*paper, *modern, "quickstart"]


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("llm2vec-paper")])
def test_the_papers_settings(name: str, tmp_path: Path) -> None:
    recipe = resolved(name, tmp_path)
    assert [step.stage for step in recipe.steps] == list(PAPER)
    for step in recipe.steps:
        found = asdict(step.settings)
        assert {key: found[key] for key in PAPER[step.stage]} == PAPER[step.stage]
    masking = recipe.steps[0].settings
    assert (masking.mask_rate, masking.mask_scheme) == ((0.8, "all") if "mistral" in name else (0.2, "bert"))
    assert recipe.convert.pool_over == "text"


def test_the_paper_on_a_small_decoder_is_its_supervised_recipe_without_simcse(tmp_path: Path) -> None:
    recipe = resolved("modern/qwen3-0.6b-e5.yaml", tmp_path)
    assert [step.stage for step in recipe.steps] == ["mntp", "supervised"]
    for step in recipe.steps:
        found = asdict(step.settings)
        assert {key: found[key] for key in PAPER[step.stage]} == PAPER[step.stage]
    settings = recipe.steps[1].settings
    assert (settings.negatives, settings.grad_cache, settings.temperature) == (1, True, 0.02)
    assert recipe.convert.instruction_template == "instruct"


def test_the_grid_that_a_recipe_recommends_is_one(tmp_path: Path) -> None:
    """The command in its comment, but for the tasks, which nobody ships."""
    text = (RECIPES / "modern/qwen3-0.6b-e5.yaml").read_text(encoding="utf-8")
    (command,) = [line.removeprefix("#") for line in text.splitlines() if line.startswith("#   bothways ablate")]
    words = command.split()
    recipe = resolved("modern/qwen3-0.6b-e5.yaml", tmp_path)
    grid = variants(recipe, read_switches([words[words.index("--over") + 1]], recipe))
    assert len(grid) == 12
    assert {len(variant.recipe.steps) for variant in grid} == {1, 2}


@pytest.mark.parametrize("name", NAMES)
def test_its_stages_run(
    name: str, tmp_path: Path, tiny_llama_folder: Path, real_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps of each, with the recipe's own settings where they do not ask for size."""
    recipe = resolved(name, tmp_path)
    pairs = [{"query": text[:20], "positive": text, "negative": real_texts[i - 9]} for i, text in enumerate(real_texts)]
    (tmp_path / "texts.txt").write_text("\n".join(real_texts[:80]), encoding="utf-8")
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in pairs[:60]), encoding="utf-8")

    def small(step: Any) -> Any:
        file = tmp_path / ("pairs.jsonl" if step.stage == "supervised" else "texts.txt")
        changes = {**SHORT, "max_length": 40, **({"block_size": 32} if step.stage == "mntp" else {})}
        weights = [source.weight for source in step.files.data]
        data = tuple(Source(path=str(file), weight=weight) for weight in weights)
        settings = replace(step.settings, **changes)
        return replace(step, settings=settings, files=replace(step.files, data=data, held_out=()))

    steps = tuple(small(step) for step in recipe.steps)
    convert = replace(recipe.convert, max_length=40, dtype="float32", device="cpu")
    tiny = replace(recipe, base=str(tiny_llama_folder), convert=convert, steps=steps, tasks=())
    run(tiny, tmp_path / "out")
    last = Encoder.from_pretrained(tmp_path / "out" / f"{len(steps)}-{steps[-1].stage}")
    assert [stage["stage"] for stage in last.record.stages] == ["convert", *(step.stage for step in steps)]
