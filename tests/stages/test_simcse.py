"""SimCSE: two views that differ, or a refusal; and that it teaches."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    BloomConfig,
    BloomModel,
    GPT2Config,
    GPT2Model,
    MptConfig,
    MptModel,
    OPTConfig,
    OPTModel,
)

from bothways import Encoder, SimCSE, convert, simcse
from bothways.errors import TrainingError
from bothways.training.dropout import dropout_of

sys.path.append(str(Path(__file__).parents[1] / "bidirectional"))

from tiny import tiny

SMALL = SimCSE(steps=2, batch_size=6, max_length=24, learning_rate=1e-3, precision="fp32", held_out_items=12)


@pytest.fixture
def encoder(tiny_llama_folder: Path) -> Encoder:
    return convert(tiny_llama_folder, dtype="float32", device="cpu")


@pytest.mark.parametrize("changes", [{"tune": "full"}, {"tune": "lora", "lora_dropout": 0.3}])
def test_identical_views_are_refused(encoder: Encoder, real_texts: list[str], changes: dict) -> None:
    """Fresh adapters are zero, so that their dropout makes no difference yet."""
    with pytest.raises(TrainingError, match="the two views of a text do not differ") as caught:
        simcse(encoder, real_texts[:40], replace(SMALL, dropout=0.0, **changes), show_progress=False)
    assert "dropout=0.3" in str(caught.value)
    assert not encoder.training


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_the_views_differ_and_their_cosine_is_recorded(encoder: Encoder, real_texts: list[str], tune: str) -> None:
    simcse(encoder, real_texts[:40], replace(SMALL, tune=tune), show_progress=False)
    assert 0.3 < encoder.record.stages[-1]["cosine_of_views"] < 0.9999


def test_it_teaches_to_tell_texts_apart(encoder: Encoder, real_texts: list[str]) -> None:
    settings = replace(SMALL, steps=12, batch_size=24, learning_rate=3e-3, held_out_items=24, tune="full")
    spread = []
    texts = real_texts[-50:]
    for _ in range(2):
        vectors = encoder.encode(texts)
        spread.append((vectors @ vectors.T)[~np.eye(len(texts), dtype=bool)].mean())
        if len(spread) == 1:
            simcse(encoder, real_texts[:-50], settings, show_progress=False)
    before, after = encoder.record.stages[-1]["held_out"].values()
    assert after["loss"] < before["loss"]
    assert spread[1] < spread[0] - 0.02


def test_dropout_finds_its_place_in_every_spelling() -> None:
    """A number (OPT), a whole one (MPT), a Dropout module (GPT-2, Bloom), or none at all: then the embeddings."""
    shape = {"vocab_size": 31, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    gpt2 = GPT2Model(GPT2Config(vocab_size=31, n_embd=24, n_layer=2, n_head=2, n_positions=16, attn_pdrop=0.1))
    opt = OPTModel(OPTConfig(**shape, ffn_dim=20, word_embed_proj_dim=24, dropout=0.0, attention_dropout=0.0))
    bloom = BloomModel(BloomConfig(vocab_size=31, hidden_size=24, n_layer=2, n_head=2, hidden_dropout=0.0))
    mpt = MptModel(MptConfig(vocab_size=31, d_model=24, n_layers=2, n_heads=2, max_seq_len=16))
    for model in (bloom, mpt):
        with dropout_of(model, 0.45) as said:
            assert str(said) == "dropout 0.45 in 2 attention layers"
    assert bloom.h[0].self_attention.hidden_dropout == 0.0
    assert mpt.blocks[0].attn.attn_dropout_p == 0
    for model in (gpt2, opt):
        with dropout_of(model, 0.45) as said:
            assert str(said) == "dropout 0.45 in 2 attention layers"
            found = [getattr(m, "p", None) for m in model.modules() if isinstance(m, torch.nn.Dropout)]
            found += [m.dropout for m in model.modules() if "Attention" in type(m).__name__ and hasattr(m, "dropout")]
            assert found.count(0.45) == 2
    assert gpt2.h[0].attn.attn_dropout.p == 0.1
    assert opt.decoder.layers[0].self_attn.dropout == 0.0


def test_without_a_place_in_attention_the_embeddings_are_dropped(encoder: Encoder) -> None:
    for layer in encoder.model.layers:
        del layer.self_attn.attention_dropout
    features = encoder.collate(encoder.tokenise(["one text"]))
    embedding = encoder.model.get_input_embeddings()
    with dropout_of(encoder.model, 0.5) as said:
        assert str(said) == "dropout 0.5 on the embeddings: its attention has no place for it"
        encoder.model.train()
        assert (embedding(features.input_ids) == 0).float().mean() > 0.3
        encoder.model.eval()
        assert (embedding(features.input_ids) == 0).float().mean() < 0.1
    encoder.model.train()
    assert (embedding(features.input_ids) == 0).float().mean() < 0.1


VIEWS = [
    ("llama", "eager", "dropout 0.3 in 2 attention layers"),
    ("llama", "sdpa", "dropout 0.3 in 2 attention layers"),
    ("gpt2", "eager", "dropout 0.3 in 2 attention layers"),
    ("gpt2", "sdpa", "dropout 0.3 in 2 attention layers"),
    ("gptj", "eager", "dropout 0.3 in 2 attention layers"),
    ("mamba", "eager", "dropout 0.3 on the embeddings: its attention has no place for it"),
    ("rwkv", "eager", "dropout 0.3 on the embeddings: its attention has no place for it"),
    ("lfm2", "sdpa", "dropout 0.3 on the embeddings: its attention has no place for it"),
]


@pytest.mark.parametrize(("name", "backend", "expected"), VIEWS)
def test_views_differ_in_every_architecture(
    name: str,
    backend: str,
    expected: str,
    tiny_llama_folder: Path,
    real_texts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Packed where it may be; nothing of the model's own dropout, and fresh adapters have none yet."""
    monkeypatch.setattr("bothways.hardware.EAGER_TOKENS", 0)
    other = of_tiny(name, backend, tiny_llama_folder, tmp_path)
    simcse(other, real_texts[:40], replace(SMALL, lora_dropout=0.2), show_progress=False)
    stage = other.record.stages[-1]
    assert stage["dropout"] == expected
    assert stage["cosine_of_views"] < 0.9999
    assert all(torch.isfinite(weight).all() for weight in other.parameters())


def test_attention_that_refuses_dropout_is_left_without(encoder: Encoder) -> None:
    """Flex attention, which does not train on CPU."""
    encoder.model.config._attn_implementation = "flex_attention"
    with dropout_of(encoder.model, 0.3) as dropout:
        assert (dropout.layers, dropout.embeddings) == (0, 0.3)
        assert {layer.self_attn.attention_dropout for layer in encoder.model.layers} == {0.0}


def of_tiny(name: str, backend: str, tokenizer_of: Path, folder: Path) -> Encoder:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    none = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attention_dropout": 0.0}
    own = none if name.startswith("gpt") else {}
    tiny(name, "eager", head=True, vocab_size=len(tokenizer), **own).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return convert(folder, dtype="float32", device="cpu", attn_implementation=backend)


def test_attention_that_ignores_its_dropout_is_noticed(
    tiny_llama_folder: Path, real_texts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Persimmon has a place for it in its attention, but reads the rate of its config."""
    persimmon = of_tiny("persimmon", "sdpa", tiny_llama_folder, tmp_path)
    with pytest.raises(TrainingError, match=r"do not differ .* dropout 0\.3 in 2 attention layers") as caught:
        simcse(persimmon, real_texts[:40], replace(SMALL, embedding_dropout=0.0), show_progress=False)
    assert "or embedding_dropout=0.1" in str(caught.value)
    simcse(persimmon, real_texts[:40], SMALL)
    said = "dropout 0.3 on the embeddings: attention with it computes the same as without"
    assert f"{said}; cosine of two views 0." in " ".join(capsys.readouterr().err.split())
    assert persimmon.record.stages[-1]["dropout"] == said


def test_dropout_on_the_embeddings_can_be_asked_for(encoder: Encoder, real_texts: list[str]) -> None:
    cosines = []
    for dropout in (0.0, 0.3):
        settings = replace(SMALL, dropout=dropout, embedding_dropout=0.1)
        simcse(encoder, real_texts[:40], settings, show_progress=False)
        stage = encoder.record.stages[-1]
        assert stage["dropout"] == f"dropout {dropout:g} in 3 attention layers, dropout 0.1 on the embeddings"
        cosines.append(stage["cosine_of_views"])
    assert 0.999 > cosines[0] > cosines[1]
    assert not encoder.model.get_input_embeddings()._forward_hooks
