"""Contract and property: a grid of variants, whose common stages are made once, goes on where it was killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bothways import provenance
from bothways.encoder import Encoder
from bothways.errors import ConfigError
from bothways.evaluation import evaluate
from bothways.recipe import ablate, read, run
from bothways.recipe.ablate import STAGES, TABLE
from bothways.recipe.chain import FILE
from bothways.recipe.stage import checkpoints_of
from bothways.training.progress import Lines

TEMPLATE = """\
base: {base}
convert:
  max_length: 120
stages:
  - mntp:
      data: texts.txt
      steps: {steps}
      batch_size: 3
      block_size: 32
      learning_rate: 1e-2
      held_out_items: 3
      save_every: 1
      precision: fp32
  - supervised:
      data: examples.jsonl
      steps: 3
      batch_size: 5
      learning_rate: 1e-3
      held_out_items: 0
      save_every: 1
      precision: fp32
evaluate:
  - pairs.jsonl
"""
GRID = ("pooling=mean,last", "mntp")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_llama_folder: Path, real_texts: list[str]) -> Path:
    """A folder with a recipe, its data, and in grid/ the four variants of it."""
    folder = tmp_path_factory.mktemp("ablation")
    texts = [text for text in real_texts if len(text) < 120]
    (folder / "texts.txt").write_text("\n".join(texts[:40]) + "\n")
    rows = [{"query": text[:25], "positive": text, "negative": texts[i - 7]} for i, text in enumerate(texts[:13])]
    (folder / "examples.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    pairs = [{"s1": texts[i], "s2": texts[i + 1], "score": i % 5} for i in range(50)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)) + "\n")
    ablate(read(write_recipe(folder / "recipe.yaml", tiny_llama_folder)), GRID, folder / "grid")
    return folder


def write_recipe(path: Path, base: Path, steps: int = 2) -> Path:
    path.write_text(TEMPLATE.format(base=base, steps=steps))
    return path


def times(out: Path) -> dict[str, int]:
    return {path.name: (path / "model.safetensors").stat().st_mtime_ns for path in (out / STAGES).iterdir()}


def kinds(out: Path) -> list[str]:
    return sorted(path.name.split("-")[0] for path in (out / STAGES).iterdir())


def score_of(rows: list[dict[str, Any]], **switches: str) -> float:
    (found,) = [row for row in rows if switches.items() <= row.items()]
    return float(next(value for name, value in found.items() if name.endswith("spearman")))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_a_grid_has_one_row_for_each_cell_and_makes_common_stages_once(made: Path) -> None:
    found = json.loads((made / "grid" / TABLE).read_text())
    rows = found["rows"]
    assert [(row["pooling"], row["mntp"]) for row in rows] == [
        ("mean", "without"),
        ("mean", "with"),
        ("last", "without"),
        ("last", "with"),
    ]
    assert len({row[name] for row in rows for name in row if name.endswith("spearman")}) == 4
    assert kinds(made / "grid") == ["convert"] * 2 + ["mntp"] * 2 + ["supervised"] * 4
    for cell, row in zip(found["cells"], rows, strict=True):
        encoder = Encoder.from_pretrained(made / "grid" / cell["folders"][-1])
        scores = evaluate(encoder, [made / "pairs.jsonl"])
        assert cell["scores"] == scores
        assert row == {
            **cell["switches"],
            **{f"{task} {name}": v for task in scores for name, v in scores[task].items()},
        }
        stages = [stage["stage"] for stage in encoder.record.stages]
        assert stages == ["convert", *(["mntp"] if row["mntp"] == "with" else []), "supervised"]
        assert encoder.settings.pooling == encoder.record.stages[0]["settings"]["pooling"] == row["pooling"]


def test_a_cell_is_what_run_makes_of_its_recipe_also_where_mntp_was_trained_for_another_pooling(work: Path) -> None:
    """MNTP knows nothing of pooling, so that one training does for both; a run of its own gives the same folder."""
    cells = json.loads((work / "grid" / TABLE).read_text())["cells"]
    (folders,) = [cell["folders"] for cell in cells if cell["switches"] == {"pooling": "last", "mntp": "with"}]
    recipe = work / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("max_length: 120", "max_length: 120\n  pooling: last"))
    run(read(recipe), work / "run")
    for folder, alone in zip(folders, ("0-convert", "1-mntp", "2-supervised"), strict=True):
        ours, theirs = work / "grid" / folder, work / "run" / alone
        assert sorted(map(str, (p.relative_to(ours) for p in ours.rglob("*")))) == sorted(
            map(str, (p.relative_to(theirs) for p in theirs.rglob("*")))
        )
        assert all(torch.equal(tensor, weights(theirs)[name]) for name, tensor in weights(ours).items())
        for name in ("1_Pooling/config.json", "modules.json", "config.json"):
            assert (ours / name).read_text() == (theirs / name).read_text()
        settings, record = provenance.read(ours)
        expected, other = provenance.read(theirs)
        assert settings == expected
        assert [stage["settings"] for stage in record.stages] == [stage["settings"] for stage in other.stages]
    adapter = "adapter/adapter_model.safetensors"
    ours, theirs = (load_file(path / adapter) for path in (work / "grid" / folders[1], work / "run" / "1-mntp"))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_a_second_time_does_nothing_and_more_variants_add_what_they_lack(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = times(work / "grid")
    again = ablate(read(work / "recipe.yaml"), GRID, work / "grid")
    assert "4 cells of 10 stages; shared, they are 8, of which 8 are done" in capsys.readouterr().err
    assert times(work / "grid") == before
    assert again.rows() == json.loads((work / "grid" / TABLE).read_text())["rows"]
    wider = ablate(read(work / "recipe.yaml"), ["supervised.temperature=0.02,0.05", "mntp"], work / "grid")
    assert before.items() <= times(work / "grid").items()
    assert len(times(work / "grid")) == len(before) + 2
    known = score_of(again.rows(), pooling="mean", mntp="with")
    (row,) = [row for row in wider.rows() if (row["supervised.temperature"], row["mntp"]) == (0.02, "with")]
    assert known in row.values()


def _killed(recipe: Path, out: Path) -> None:
    """Ablate until the third cell's last stage has done two of its three steps."""
    real, count = Lines.step, 0

    def step(self: Lines, done: int, loss: float, rate: float) -> None:
        nonlocal count
        real(self, done, loss, rate)
        # Steps: 3 of supervised; 2 of mntp, 3 of supervised; then of supervised the third time.
        count += 1
        if count == 10:
            os.kill(os.getpid(), signal.SIGKILL)

    Lines.step = step  # type: ignore[method-assign]
    ablate(read(recipe), GRID, out)


def test_killed_in_the_middle_it_goes_on_and_ends_as_if_nothing_had_been(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = work / "killed"
    process = multiprocessing.get_context("fork").Process(target=_killed, args=(work / "recipe.yaml", out))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    (interrupted,) = (out / STAGES).glob("*.checkpoints")
    assert interrupted.name.startswith("supervised-")
    assert [row["mntp"] for row in json.loads((out / TABLE).read_text())["rows"]] == ["without", "with"]
    before = times_of_whole(out)
    capsys.readouterr()
    found = ablate(read(work / "recipe.yaml"), GRID, out)
    said = capsys.readouterr().err
    assert "resumed after step 1" in said
    assert before.items() <= times(out).items()
    assert not list((out / STAGES).glob("*.checkpoints"))
    assert found.rows() == json.loads((work / "grid" / TABLE).read_text())["rows"]
    assert set(times(out)) == set(times(work / "grid"))
    for folder in (out / STAGES).iterdir():
        expected = weights(work / "grid" / STAGES / folder.name)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(folder).items())


def times_of_whole(out: Path) -> dict[str, int]:
    return {
        path.name: (path / "model.safetensors").stat().st_mtime_ns
        for path in (out / STAGES).iterdir()
        if not path.name.endswith(".checkpoints")
    }


def test_of_several_seeds_the_table_has_mean_and_deviation(work: Path) -> None:
    found = ablate(read(work / "recipe.yaml"), ["mntp=with"], work / "seeds", seeds=(0, 1, 2))
    (row,) = found.rows()
    values = [scores[task][name] for _, scores in found.found for task in scores for name in scores[task]]
    assert len(set(values)) == 3
    name = next(name for name in row if name.endswith("spearman"))
    assert row == {
        "mntp": "with",
        name: pytest.approx(sum(values) / 3),
        f"{name} ±": pytest.approx(float(np.std(values, ddof=1))),
    }
    assert statistics.stdev(values) > 0
    assert kinds(work / "seeds") == ["convert"] + ["mntp"] * 3 + ["supervised"] * 3
    cells = json.loads((work / "seeds" / TABLE).read_text())["cells"]
    for cell, seed in zip(cells, (0, 1, 2), strict=True):
        _, record = provenance.read(work / "seeds" / cell["folders"][-1])
        assert [stage["settings"]["seed"] for stage in record.stages[1:]] == [seed, seed]


def test_a_recipe_that_changed_is_refused_by_the_name_of_the_field(work: Path, tiny_llama_folder: Path) -> None:
    before = times(work / "grid")
    write_recipe(work / "recipe.yaml", tiny_llama_folder, steps=4)
    with pytest.raises(
        ConfigError,
        match=r"recipe\.yaml is no longer the recipe that .*recipe\.json was made from: of 1-mntp, steps was 2 and is "
        r"now 4\. Put it back, or name another --out: all cells of a table have one recipe\.",
    ):
        ablate(read(work / "recipe.yaml"), GRID, work / "grid")
    text = (work / "recipe.yaml").read_text()
    (work / "recipe.yaml").write_text(text[: text.index("  - supervised")] + text[text.index("evaluate") :])
    with pytest.raises(ConfigError, match=r"its stages were 0-convert, 1-mntp, 2-supervised and are now 0-convert, 1-"):
        ablate(read(work / "recipe.yaml"), GRID, work / "grid")
    assert times(work / "grid") == before


def test_a_folder_of_something_else_and_a_recipe_without_tasks_are_refused(work: Path) -> None:
    (work / "other").mkdir()
    (work / "other" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="other exists and is not empty"):
        ablate(read(work / "recipe.yaml"), GRID, work / "other")
    recipe = work / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("evaluate:\n  - pairs.jsonl\n", ""))
    with pytest.raises(ConfigError, match=r"recipe\.yaml names no tasks to compare its variants by\. Name some under"):
        ablate(read(recipe), GRID, work / "new")
    assert not (work / "new").exists()


@pytest.mark.parametrize(
    ("words", "seeds", "message"),
    [
        (("mntp",), (1, 1), "--seeds: 1 stands twice. Keep one."),
        (("mntp",), (0, -1), "--seeds: -1, expected whole numbers from 0."),
        (("mntp.seed=0,1",), (0,), "--over mntp.seed and --seeds both set seeds. Leave one out."),
    ],
)
def test_wrong_seeds_are_said(work: Path, words: tuple[str, ...], seeds: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ablate(read(work / "recipe.yaml"), words, work / "new", seeds)
    assert not (work / "new").exists()


def test_a_damaged_record_is_said(work: Path) -> None:
    (work / "grid" / FILE).write_text('{"0-convert": ')
    with pytest.raises(ConfigError, match=r"recipe\.json line 1: .* Delete .*grid and run again"):
        ablate(read(work / "recipe.yaml"), GRID, work / "grid")


def test_checkpoints_stand_beside_the_stage_they_belong_to(made: Path) -> None:
    """A stage's checkpoints must never be found by a stage of another content."""
    folders = list((made / "grid" / STAGES).iterdir())
    assert len({checkpoints_of(folder) for folder in folders}) == len(folders)
