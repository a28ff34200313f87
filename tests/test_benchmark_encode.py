"""The benchmark of encode: what is measured is what it says, and a variant that does other work is noticed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.beside import same_work
from benchmarks.peers.condition import CPU_SHAPES, TINY
from benchmarks.peers.encode_matmuls import products
from benchmarks.peers.passages import Passages, blanked, passages
from bothways import Encoder, convert, loading

SHAPE = {**CPU_SHAPES["vocab-32k"], **TINY, "head_dim": 10, "intermediate_size": 56, "vocab_size": 8192}


def condition(**changes: Any) -> Passages:
    return Passages("one", SHAPE, "full", 60, 512, "cpu", **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("passages")
    condition().make(folder)
    return folder


def test_texts_have_the_lengths_that_are_said(folder: Path) -> None:
    given = condition().job(folder, "sdpa")
    texts = passages(given)
    assert len(set(texts)) == 60
    tokenizer = loading.load_tokenizer(folder, trust_remote_code=False)
    lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    said = condition().lengths()
    # Cut out of its text a piece may have a token more or less.
    assert max(abs(one - other) for one, other in zip(lengths, said, strict=True)) <= 3
    assert (min(said), max(said)) == (8, 512)
    assert set(condition(lengths_are="uniform").lengths()) == {128}
    assert set(condition(lengths_are="short").lengths()) == set(range(8, 17))


def test_padding_is_that_of_sorted_batches() -> None:
    lengths = sorted(condition().lengths())
    padded = 32 * lengths[31] + 28 * lengths[59]
    assert condition().padding() == {"tokens": sum(lengths), "padding": padded / sum(lengths)}


def test_a_variant_with_other_vectors_is_noticed() -> None:
    ready = {
        "bothways": {"sample": [[1.0, 0.0], [0.6, 0.8]], "trained": 0},
        "llm2vec, sdpa": {"sample": [[2.0, 0.0], [0.8, 0.6]], "trained": 0},
    }
    with pytest.raises(SystemExit, match=r"benchmarks encode: one: llm2vec, sdpa gives a vector with cosine 0.960000"):
        same_work(condition(), ready)
    ready["llm2vec, sdpa"]["sample"][1] = [0.6, 0.8]
    same_work(condition(), ready)


def test_the_floor_is_the_forward_pass(folder: Path) -> None:
    given = condition(number="float32").job(folder, "auto")
    found = list(products(AutoConfig.from_pretrained(folder), given))
    tokenizer = loading.load_tokenizer(folder, trust_remote_code=False)
    lengths = [len(ids) for ids in tokenizer(passages(given))["input_ids"]]
    layers, width = 2, 40
    weights = layers * (2 * width * width + 2 * width * 20 + 3 * width * 56)
    linear = sum(product.operations for product in found if product.part == "linear layers")
    # Whole packs: at most one more or less.
    assert linear == pytest.approx(2 * weights * sum(lengths), rel=1024 / sum(lengths))
    attention = sum(product.operations for product in found if product.part == "attention")
    assert attention == layers * 4 * width * sum(length * length for length in lengths)


def test_a_blank_model_computes_nothing(folder: Path) -> None:
    encoder: Encoder = convert(folder, dtype="float32", device="cpu")
    blanked(encoder.model)
    assert not encoder.encode(["a text", "another one"]).any()
    assert encoder.model(input_ids=torch.zeros(2, 5, dtype=torch.long)).last_hidden_state.shape == (2, 5, 40)


def test_auto_is_the_floor_of_what_the_hardware_has(monkeypatch: pytest.MonkeyPatch) -> None:
    from bothways import hardware

    monkeypatch.setattr(hardware, "choose_dtype", lambda *_: SimpleNamespace(value=torch.bfloat16))
    assert condition(number="auto").dtype == "bfloat16"
    assert condition().dtype == "float32"
