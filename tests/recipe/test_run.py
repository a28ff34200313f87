"""Contract and property: a recipe is run once, goes on where it stopped, and refuses what it no longer describes."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from bothways import Merge, merge, provenance
from bothways.encoder import Encoder
from bothways.errors import ConfigError
from bothways.recipe import read, run
from bothways.recipe.stage import checkpoints_of
from bothways.training.progress import Lines, Silence

TEMPLATE = """\
base: {base}
convert:
  pooling: mean
  max_length: 200
stages:
  - mntp:
      data: texts.txt
      steps: {steps}
      batch_size: 3
      block_size: 32
      held_out_items: 5
      save_every: 1
      precision: fp32
  - simcse:
      data: [texts.txt]
      steps: 2
      batch_size: 5
      precision: fp32
      held_out_items: 0
evaluate:
  - pairs.jsonl
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_llama_folder: Path, real_texts: list[str]) -> Path:
    """A folder with a recipe, its data, and in enc/ the run of it."""
    folder = tmp_path_factory.mktemp("recipe")
    real_texts = [text for text in real_texts if len(text) < 200]
    (folder / "texts.txt").write_text("\n".join(real_texts[:60]) + "\n")
    pairs = [{"s1": real_texts[i], "s2": real_texts[i + 1], "score": i} for i in range(7)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)) + "\n")
    run(read(write_recipe(folder / "recipe.yaml", tiny_llama_folder)), folder / "enc")
    return folder


def write_recipe(path: Path, base: Path, steps: int = 3) -> Path:
    path.write_text(TEMPLATE.format(base=base, steps=steps))
    return path


def stage_times(out: Path) -> dict[str, int]:
    return {path.name: (path / "model.safetensors").stat().st_mtime_ns for path in out.glob("[0-9]-*")}


def test_every_stage_gets_a_folder_and_scores_and_a_second_run_does_nothing(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = stage_times(work / "enc")
    assert sorted(before) == ["0-convert", "1-mntp", "2-simcse"]
    rows = run(read(work / "recipe.yaml"), work / "enc")
    assert stage_times(work / "enc") == before
    assert "1-mntp: done, skipped" in capsys.readouterr().err
    assert [row["encoder"] for row in rows] == ["tf-idf", "0-convert", "1-mntp", "2-simcse"]
    _, record = provenance.read(work / "enc" / "2-simcse")
    assert [stage["stage"] for stage in record.stages] == ["convert", "mntp", "simcse"]
    assert all(stage["scores"] for stage in record.stages)


def test_a_run_that_was_interrupted_ends_as_one_that_was_not(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    again = work / "again"

    def press_ctrl_c(self: Lines | Silence, done: int, loss: float, rate: float) -> None:
        if done == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Lines, "step", press_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            run(read(work / "recipe.yaml"), again)
    assert checkpoints_of(again / "1-mntp").is_dir()
    assert not (again / "1-mntp").exists()
    run(read(work / "recipe.yaml"), again)
    assert not checkpoints_of(again / "1-mntp").exists()
    texts = ["a text", "another, which is longer"]
    for stage in ("1-mntp", "2-simcse"):
        vectors = [Encoder.from_pretrained(out / stage).encode(texts) for out in (work / "enc", again)]
        np.testing.assert_array_equal(*vectors)


def test_a_recipe_that_changed_is_refused_by_the_name_of_the_field(work: Path, tiny_llama_folder: Path) -> None:
    write_recipe(work / "recipe.yaml", tiny_llama_folder, steps=4)
    with pytest.raises(ConfigError, match=r"no longer describes .*1-mntp: steps was 3 and is now 4\. Put it back"):
        run(read(work / "recipe.yaml"), work / "enc")


def test_data_that_changed_is_refused(work: Path) -> None:
    with (work / "texts.txt").open("a") as file:
        file.write("one more line\n")
    with pytest.raises(ConfigError, match="1-mntp: data was"):
        run(read(work / "recipe.yaml"), work / "enc")


def test_a_stage_whose_origin_is_gone_is_refused(work: Path) -> None:
    shutil.rmtree(work / "enc" / "1-mntp")
    with pytest.raises(ConfigError, match=r"2-simcse was made from .*1-mntp, which is gone"):
        run(read(work / "recipe.yaml"), work / "enc")


def test_a_foreign_folder_is_refused(work: Path) -> None:
    (work / "new" / "0-convert").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"0-convert exists, but recipe\.yaml did not make it"):
        run(read(work / "recipe.yaml"), work / "new")


MERGE = """\
  - merge:
      stages: [mntp, 2-simcse]
      base: 0
      method: slerp
evaluate:"""


def test_a_merge_of_earlier_stages_is_a_stage(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = work / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("evaluate:", MERGE))
    rows = run(read(recipe), work / "enc")
    assert "3-merge: merging 1-mntp, 2-simcse" in capsys.readouterr().err
    assert [row["encoder"] for row in rows] == ["tf-idf", "0-convert", "1-mntp", "2-simcse", "3-merge"]
    every = [Encoder.from_pretrained(work / "enc" / name, device="cpu") for name in read(recipe).names]
    expected = merge(every[1:3], Merge(method="slerp"), base=every[0])
    texts = ["a text", "another, which is longer"]
    np.testing.assert_array_equal(every[3].encode(texts), expected.encode(texts))
    stage = every[3].record.stages[-1]
    assert [entry["name"] for entry in stage["encoders"]] == ["1-mntp", "2-simcse"]
    assert stage["scores"]
    run(read(recipe), work / "enc")
    assert "3-merge: done, skipped" in capsys.readouterr().err
    recipe.write_text(recipe.read_text().replace("[mntp, 2-simcse]", "[2-simcse, mntp]"))
    with pytest.raises(ConfigError, match=r"no longer describes .*3-merge: stages was \[1, 2\] and is now \[2, 1\]"):
        run(read(recipe), work / "enc")
