"""The demo end to end, at the smallest size: rows in order, a folder that opens, answers, and nothing overwritten."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bothways import Encoder
from bothways.corpus import Corpus
from bothways.demo import steps
from bothways.demo.documentation import Docstring
from bothways.demo.pairs import split
from bothways.demo.settings import QUESTIONS, RECIPE, Recipe
from bothways.errors import ConfigError

STEPS = ["tf-idf", "causal decoder", "random weights", "converted", "+ MNTP", "+ SimCSE", "+ supervised"]


@pytest.fixture
def recipe(tiny_llama_folder: Path) -> Recipe:
    short = {"steps": 2, "batch_size": 3, "held_out_items": 3}
    return replace(
        RECIPE,
        base=str(tiny_llama_folder),
        max_length=24,
        mntp=replace(RECIPE.mntp, **short, block_size=32),
        simcse=replace(RECIPE.simcse, **short),
        supervised=replace(RECIPE.supervised, **short),
    )


# The tiny tokenizer makes many tokens of a question.
@pytest.mark.filterwarnings("ignore:.*were cut")
def test_the_demo_leaves_an_encoder_a_corpus_and_its_figures(
    tmp_path: Path, recipe: Recipe, library: Sequence[Docstring], capsys: pytest.CaptureFixture[str]
) -> None:
    documentation = split(library[::3])
    out = steps.run(tmp_path / "out", recipe, documentation)
    assert sorted(item.name for item in out.iterdir()) == ["corpus", "demo.json", "encoder"]

    results = json.loads((out / "demo.json").read_text(encoding="utf-8"))
    assert [row["step"] for row in results["rows"]] == STEPS
    for row in results["rows"]:
        assert 0 <= row["ndcg@10"] <= row["recall@10"] <= 1
    assert results["documentation"]["held-out pairs"] == len(documentation.test.queries)
    assert {"python", "torch", "transformers"} <= results["versions"].keys()
    assert results["hardware"]["cores"] >= 1
    assert [answer["question"] for answer in results["answers"]] == list(QUESTIONS)

    encoder = Encoder.from_pretrained(out / "encoder")
    assert [stage["stage"] for stage in encoder.record.stages][-3:] == ["mntp", "simcse", "supervised"]
    corpus = Corpus.open(out / "corpus")
    assert corpus.texts == [document.text for document in documentation.library]
    hit = corpus.search(encoder.encode_query(QUESTIONS[0]), 1)[0]
    assert hit.id == results["answers"][0]["found"][0]["id"]
    shortest = min(range(len(corpus.texts)), key=lambda place: len(corpus.texts[place]))
    np.testing.assert_allclose(encoder.encode(corpus.texts[shortest]), corpus.vectors[shortest], atol=1e-5)

    shown = capsys.readouterr()
    for cell in (*STEPS, QUESTIONS[0], "seconds in all"):
        assert cell in shown.out
    assert "supervised" in shown.err


def test_a_folder_with_something_in_it_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ConfigError, match="exists and is not empty"):
        steps.run(tmp_path)
    assert [item.name for item in tmp_path.iterdir()] == ["mine"]
