"""Contract: the student comes to give its teacher's vectors, whatever their dimension, also beside contrastive loss."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from bothways import Distil, Encoder, convert, distil
from bothways.cli import _main
from bothways.data import Example
from bothways.errors import ConfigError, DataError
from bothways.recipe import read, run

SETTINGS = Distil(steps=40, batch_size=8, learning_rate=1e-3, tune="full", precision="fp32", held_out_items=6)


@pytest.fixture(scope="module")
def texts(real_texts: list[str]) -> list[str]:
    return list(dict.fromkeys(text[:60] for text in real_texts))[:70]


def teacher(folder: Path, texts: list[str], dim: int) -> str:
    """Vectors of words: which a decoder can learn, and which it does not have by chance."""
    random = np.random.default_rng(0)
    words: dict[str, np.ndarray] = {}
    vectors = [
        sum(words.setdefault(word, random.normal(size=dim)) for word in text.lower().split()).tolist()  # type: ignore[union-attr]
        for text in texts
    ]
    path = folder / f"vectors-{dim}.parquet"
    pq.write_table(pa.table({"text": texts, "vector": vectors}), path)
    return str(path)


def student(folder: Path) -> Encoder:
    return convert(folder, dtype="float32", device="cpu")


@pytest.mark.parametrize("dim", [32, 11, 70])
def test_its_vectors_come_nearer_to_the_teachers_vectors(
    dim: int, texts: list[str], tiny_llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = student(tiny_llama_folder)
    settings = replace(SETTINGS, teacher=teacher(tmp_path, texts, dim), similarity=0.0)
    stage = distil(encoder, texts, settings, held_out=texts[::3]).record.stages[-1]
    before, after = (stage["held_out"][step] for step in ("0", "40"))
    assert after["cosine"] > before["cosine"] + 0.1
    assert after["loss"] < before["loss"]
    assert stage["teacher_dim"] == dim
    said = capsys.readouterr().err
    if dim == encoder.dim:
        assert f"teacher of {dim} dimensions" in said
        assert "projection_keeps" not in stage
    else:
        assert f"teacher of {dim} dimensions, projected to {encoder.dim} (keeps" in said
        assert (stage["projection_keeps"] > 0.999) == (dim < encoder.dim)


def test_examples_are_distilled_on_both_sides_and_told_apart(
    texts: list[str], tiny_llama_folder: Path, tmp_path: Path
) -> None:
    examples = [Example(query, positive) for query, positive in zip(texts[:35], texts[35:], strict=True)]
    settings = replace(SETTINGS, teacher=teacher(tmp_path, texts, 32), contrastive=0.5, steps=10)
    plain, cached = (
        distil(student(tiny_llama_folder), examples, replace(settings, **how), show_progress=False)
        for how in ({}, {"grad_cache": True, "tokens_per_batch": 40})
    )
    assert plain.record.stages[-1]["held_out"]["10"]["loss"] < plain.record.stages[-1]["held_out"]["0"]["loss"]
    np.testing.assert_allclose(cached.encode(texts), plain.encode(texts), atol=1e-3)
    with pytest.raises(
        ConfigError, match=r"Distil\(contrastive=0\.5\) needs examples .* Give examples, or contrastive=0"
    ):
        distil(student(tiny_llama_folder), texts, settings)


def test_a_resumed_run_equals_one_without_a_stop(texts: list[str], tiny_llama_folder: Path, tmp_path: Path) -> None:
    """The projection too: it is fitted to the encoder as it was at the start."""
    settings = replace(SETTINGS, teacher=teacher(tmp_path, texts, 11), steps=6, save_every=3)
    whole = distil(student(tiny_llama_folder), texts, settings, checkpoint_dir=tmp_path / "whole")
    (tmp_path / "whole" / "step-00000006.pt").unlink()
    again = distil(student(tiny_llama_folder), texts, settings, checkpoint_dir=tmp_path / "whole", resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_nobody_to_learn_from(texts: list[str], tiny_llama_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r'Distil\(teacher=""\): there is nobody to learn from\. Name a folder'):
        distil(student(tiny_llama_folder), texts, Distil())
    with pytest.raises(ConfigError, match=r"Distil\(cosine=0, similarity=0\): nothing is learnt from the teacher"):
        Distil(cosine=0, similarity=0)


def test_as_a_verb_and_in_a_recipe(
    texts: list[str], tiny_llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The verb and the recipe make the same encoder; the recipe's paths are relative to it."""
    teacher(tmp_path, texts, 11)
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    student(tiny_llama_folder).save_pretrained(tmp_path / "start")
    steps = ["--steps", "3", "--batch-size", "8", "--device", "cpu"]
    data = ["--data", str(tmp_path / "texts.txt"), "--teacher", str(tmp_path / "vectors-11.parquet")]
    assert _main(["distil", str(tmp_path / "start"), *data, *steps, "--out", str(tmp_path / "by-hand")]) == 0
    recipe = {
        "base": str(tiny_llama_folder),
        "convert": {"device": "cpu", "dtype": "float32"},
        "stages": [{"distil": {"data": "texts.txt", "teacher": "vectors-11.parquet", "steps": 3, "batch_size": 8}}],
    }
    (tmp_path / "r.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    run(read(tmp_path / "r.yaml"), tmp_path / "out")
    one, two = (Encoder.from_pretrained(tmp_path / name, device="cpu") for name in ("by-hand", "out/1-distil"))
    np.testing.assert_allclose(one.encode(texts[:5]), two.encode(texts[:5]), atol=1e-5)
    teacher(tmp_path, [*texts, "one more"], 11)
    with pytest.raises(ConfigError, match=r"r\.yaml no longer describes .*1-distil: teacher was 'vectors-11\.parquet "):
        run(read(tmp_path / "r.yaml"), tmp_path / "out")
    recipe["stages"] = [{"distil": {"data": "texts.txt", "teacher": "gone.parquet"}}]
    (tmp_path / "r.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"r\.yaml line 1: teacher of distil: gone\.parquet does not exist"):
        read(tmp_path / "r.yaml")


def test_similarities_alone_need_no_projection(texts: list[str], tiny_llama_folder: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, teacher=teacher(tmp_path, texts, 11), cosine=0.0)
    stage = distil(student(tiny_llama_folder), texts, settings, held_out=texts[::3]).record.stages[-1]
    assert stage["held_out"]["40"]["loss"] < stage["held_out"]["0"]["loss"] / 2
    assert "cosine" not in stage["held_out"]["40"]
    assert "projection_keeps" not in stage


def test_every_setting_of_the_family_does_something(texts: list[str], tiny_llama_folder: Path, tmp_path: Path) -> None:
    """Prefixes, spread and dropout: each changes what is learnt."""
    settings = replace(SETTINGS, teacher=teacher(tmp_path, texts, 32), steps=2)
    ends = [
        distil(student(tiny_llama_folder), texts, replace(settings, **how), show_progress=False).encode(texts[:5])
        for how in ({}, {}, {"matryoshka": (7,)}, {"spread_out": 3.0}, {"dropout": 0.4})
    ]
    np.testing.assert_array_equal(ends[0], ends[1])
    assert all(np.abs(ends[0] - other).max() > 1e-4 for other in ends[2:])


@pytest.mark.parametrize("left", [1, 2])
def test_one_or_two_held_out_texts_are_measured_though_they_have_no_others(
    left: int, texts: list[str], tiny_llama_folder: Path, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, teacher=teacher(tmp_path, texts, 32), steps=1)
    stage = distil(student(tiny_llama_folder), texts, settings, held_out=texts[: 8 + left]).record.stages[-1]
    assert 0 < stage["held_out"]["0"]["cosine"] < 1
    with pytest.raises(DataError, match=r"distil: 2 items are too few to be similar to one another\. Give more"):
        distil(student(tiny_llama_folder), texts[:2], settings, held_out=texts[2:4])


def test_numbers_of_dimensions_that_cannot_be(texts: list[str], tiny_llama_folder: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, teacher=teacher(tmp_path, texts, 32), matryoshka=(999,))
    with pytest.raises(
        ConfigError, match=r"Distil\(matryoshka=\(999,\)\): 999, but the vectors of this encoder have \d+"
    ):
        distil(student(tiny_llama_folder), texts, settings)
    with pytest.raises(
        ConfigError, match=r"first dimensions learn similarities, since a teacher has no vector of that"
    ):
        Distil(matryoshka=(7,), similarity=0.0)


def test_the_teacher_is_opened_once(
    texts: list[str], tiny_llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For queries and documents, to train on and held out."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    student(tiny_llama_folder).save_pretrained(tmp_path / "teacher")
    real, opened = sentence_transformers.SentenceTransformer, []

    def opening(name: str, **options: object) -> object:
        opened.append(name)
        return real(name, **options)

    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", opening)
    examples = [Example(query, positive) for query, positive in zip(texts[:35], texts[35:], strict=True)]
    settings = replace(SETTINGS, teacher=str(tmp_path / "teacher"), steps=1)
    distil(student(tiny_llama_folder), examples, settings, show_progress=False)
    assert opened == [str(tmp_path / "teacher")]
