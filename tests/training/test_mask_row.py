"""Mask token "new": a row that is spare or appended, trained whatever is tuned, saved, served, and found again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    GPT2Config,
    PreTrainedConfig,
)

from bothways import MNTP, Encoder, convert, mntp
from bothways.errors import ConfigError
from bothways.head import Head
from bothways.packing import packing
from bothways.recipe.stage import head_from
from bothways.stages.mntp import mntp_loss
from bothways.training import checkpoint
from bothways.training.mask_row import NAME, TrainedRow, find_row, make_row, recorded_row
from bothways.training.tuning import tuned

SETTINGS = MNTP(
    steps=4, batch_size=4, block_size=32, learning_rate=1e-2, precision="fp32", held_out_items=20, mask_token="new"
)
TIED, UNTIED = 501, 421
"""Where the new row stands: behind a vocabulary that fills the embedding, and in the first of its spare rows."""


@pytest.fixture(params=["tied", "untied"])
def folder(request: pytest.FixtureRequest, tiny_llama_folder: Path, tiny_untied_folder: Path) -> Path:
    return tiny_llama_folder if request.param == "tied" else tiny_untied_folder


def embedding(encoder: Encoder) -> nn.Parameter:
    weight: nn.Parameter = encoder.model.get_input_embeddings().weight
    return weight


@pytest.mark.parametrize("tune", ["lora", "dora", "qlora", "full"])
def test_it_is_trained_saved_served_and_found_again(
    folder: Path, real_texts: list[str], tmp_path: Path, tune: Any
) -> None:
    if tune == "qlora":
        pytest.importorskip("bitsandbytes")
    encoder = convert(folder, dtype="float32", device="cpu")
    tied, tokenizer = encoder.head.tied, encoder.tokenizer.backend_tokenizer.to_str()
    row, before = (TIED if tied else UNTIED), embedding(encoder).detach().clone()
    head = encoder.head.weight.detach().clone()
    mntp(encoder, real_texts[:90], replace(SETTINGS, tune=tune), show_progress=False)
    after = embedding(encoder).detach()
    mask = encoder.record.stages[-1]["mask_token"]
    assert (mask["id"], mask["token"], mask["new"]) == (row, "new", True)
    assert encoder.tokenizer.backend_tokenizer.to_str() == tokenizer
    assert after.shape[0] == encoder.model.config.vocab_size == (502 if tied else 433)
    assert (after[row] - before[: len(encoder.tokenizer)].mean(dim=0)).abs().max() > 1e-2, "it was trained"
    assert torch.equal(after[:row], before[:row]) == (tune != "full")
    assert (encoder.head.weight is embedding(encoder)) == tied
    assert tied or torch.equal(encoder.head.weight, head)
    assert NAME not in dict(encoder.named_parameters())

    encoder.save_pretrained(tmp_path / "1")
    texts = real_texts[:5]
    expected = encoder.encode(texts)
    stock = SentenceTransformer(str(tmp_path / "1"), device="cpu")
    np.testing.assert_allclose(stock.encode(texts), expected, rtol=0, atol=1e-6)
    plain, info = AutoModel.from_pretrained(tmp_path / "1", output_loading_info=True)
    assert not info["missing_keys"]
    assert torch.equal(plain.get_input_embeddings().weight, after)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "1")) == len(encoder.tokenizer)

    again = Encoder.from_pretrained(tmp_path / "1")
    np.testing.assert_allclose(again.encode(texts), expected, rtol=0, atol=1e-6)
    assert recorded_row(again.record) == find_row(again) == row
    assert make_row(again).id == row
    assert torch.equal(embedding(again), after), "a second stage goes on with the row as it is"
    mntp(again, real_texts[:90], replace(SETTINGS, tune=tune), show_progress=False)
    assert embedding(again).shape == after.shape
    assert not torch.equal(embedding(again)[row], after[row])
    assert "as in an earlier stage" in again.record.stages[-1]["mask_token"]["why"]


@pytest.mark.parametrize("packed", [False, True])
def test_the_hooks_gradient_is_that_of_the_whole_embedding(tiny_untied_folder: Path, packed: bool) -> None:
    encoder = convert(tiny_untied_folder, dtype="float32", device="cpu")
    row = make_row(encoder).id
    rows = torch.randint(2, UNTIED, (3, 11))
    rows[0, 4] = rows[1, 7] = rows[1, 8] = row
    labels = torch.full((3, 11), -100)
    labels[0, 4], labels[1, 7], labels[1, 8], labels[2, 3] = 17, 23, 31, 5
    arguments = (encoder, rows.tolist(), labels.tolist())
    loss, _ = mntp_loss(*arguments)
    loss.backward()
    expected = embedding(encoder).grad[row].clone()
    encoder.zero_grad()
    embedding(encoder).requires_grad_(False)
    trained = TrainedRow(encoder, row)
    with torch.no_grad():
        found = trained.value.detach().clone()
        trained.value.add_(0.3)
    shifted, _ = mntp_loss(*arguments)
    assert abs(shifted - loss) > 1e-3, "the value of the parameter is what is computed with"
    with torch.no_grad():
        trained.value.copy_(found)
    if packed:
        with packing(encoder.model) as how:
            assert how.packed
            loss, _ = mntp_loss(*arguments)
    else:
        loss, _ = mntp_loss(*arguments)
    loss.backward()
    assert trained.value.grad is not None
    assert (trained.value.grad - expected).abs().max() <= 1e-6 * expected.abs().max()
    trained.take_off()


def test_a_family_that_scales_its_embedding(tiny_llama_folder: Path, tmp_path: Path) -> None:
    """Gemma 3 multiplies it by the root of its dimension; the gradient of the row has that factor."""
    config = Gemma3TextConfig(
        vocab_size=501, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=12, intermediate_size=56, max_position_embeddings=256, initializer_range=0.12,
    )  # fmt: skip
    encoder = convert(decoder(config, tiny_llama_folder, tmp_path), dtype="float32", device="cpu")
    row = make_row(encoder).id
    assert embedding(encoder).shape[0] == 502
    # Untied, so that the matrix has no gradient but the one through the input.
    encoder.head = Head(nn.Parameter(embedding(encoder).detach().clone()))
    ids, labels = [[5, row, 7, 8]], [[-100, 3, -100, 9]]
    mntp_loss(encoder, ids, labels)[0].backward()
    expected = embedding(encoder).grad[row].clone()
    embedding(encoder).requires_grad_(False)
    trained = TrainedRow(encoder, row)
    assert trained.scale == pytest.approx(48**0.5, rel=1e-5)
    mntp_loss(encoder, ids, labels)[0].backward()
    assert (trained.value.grad - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_in_bfloat16_small_steps_are_kept(tiny_untied_folder: Path) -> None:
    encoder = convert(tiny_untied_folder, dtype="bfloat16", device="cpu")
    row = make_row(encoder).id
    before = embedding(encoder)[row].detach().float()
    with tuned(encoder, SETTINGS, torch.bfloat16) as weights:
        master = weights.masters[NAME]
        assert master.dtype == torch.float32
        for _ in range(8):
            with torch.no_grad():
                # Alone, each of these is lost beside a number of size 0.1 in bfloat16.
                master += 1e-4
            weights.publish()
        encoder.token_states([[5, row]])
    assert encoder.dtype == torch.bfloat16
    assert (embedding(encoder)[row].detach().float() - before).mean().item() == pytest.approx(8e-4, abs=2e-4)


def test_a_resumed_run_is_the_uninterrupted_one(tiny_llama_folder: Path, real_texts: list[str], tmp_path: Path) -> None:
    settings = replace(SETTINGS, save_every=2, mask_schedule="linear", mask_rate_end=0.5)
    runs = [convert(tiny_llama_folder, dtype="float32", device="cpu") for _ in range(3)]
    quiet: dict[str, Any] = {"show_progress": False}
    mntp(runs[0], real_texts[:60], settings, checkpoint_dir=tmp_path / "a", **quiet)
    mntp(runs[1], real_texts[:60], settings, checkpoint_dir=tmp_path / "b", **quiet)
    # That of the last step: something has to be left to do.
    checkpoint.found(tmp_path / "b")[-1].unlink()
    mntp(runs[2], real_texts[:60], settings, checkpoint_dir=tmp_path / "b", resume=True, **quiet)
    assert torch.equal(embedding(runs[2]), embedding(runs[0]))
    assert not torch.equal(embedding(runs[2])[TIED], embedding(runs[2])[:TIED].mean(dim=0))


def test_the_head_of_the_base_fits_an_encoder_with_a_row_more(tiny_llama_folder: Path, tmp_path: Path) -> None:
    encoder = convert(tiny_llama_folder, dtype="float32", device="cpu")
    mask = make_row(encoder)
    encoder.record = encoder.record.add("mntp", mask_token=vars(mask))
    head = head_from(str(tiny_llama_folder), encoder)
    assert head.tied
    assert head.weight is embedding(encoder)
    encoder.record = replace(encoder.record, stages=())
    with pytest.raises(ConfigError, match=r"its head is \(501, 56\), but this encoder needs \(502, 56\)"):
        head_from(str(tiny_llama_folder), encoder)


def test_other_weights_as_long_as_the_vocabulary_are_refused(
    tiny_llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a family with an embedding in each layer (Gemma 3n)."""
    encoder = convert(tiny_llama_folder, dtype="float32", device="cpu")
    kind, make = type(encoder.model), type(encoder.model).__init__

    def with_more(self: Any, config: Any) -> None:
        make(self, config)
        self.per_token = nn.Embedding(config.vocab_size, 3)

    monkeypatch.setattr(kind, "__init__", with_more)
    encoder.model.per_token = nn.Embedding(501, 3)
    with pytest.raises(ConfigError, match=r"would not fit per_token.weight \(501, 3\). Use mask_token=\"auto\""):
        make_row(encoder)
    assert embedding(encoder).shape[0] == 501


def test_an_embedding_that_is_no_lookup_is_refused(tiny_untied_folder: Path) -> None:
    encoder = convert(tiny_untied_folder, dtype="float32", device="cpu")
    row = make_row(encoder).id
    encoder.model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: output + 1)
    with pytest.raises(ConfigError, match=f"Embedding gives no multiple of its row {row}"):
        TrainedRow(encoder, row)
    assert NAME not in dict(encoder.named_parameters())


def test_gpt2_grows_by_a_row(tiny_llama_folder: Path, real_texts: list[str], tmp_path: Path) -> None:
    """Its config has other names, and its matrices stand the other way round."""
    config = GPT2Config(vocab_size=501, n_embd=24, n_layer=2, n_head=2, n_positions=64, initializer_range=0.2)
    encoder = convert(decoder(config, tiny_llama_folder, tmp_path / "gpt2"), dtype="float32", device="cpu")
    mntp(encoder, real_texts[:60], replace(SETTINGS, tune="dora"), show_progress=False)
    encoder.save_pretrained(tmp_path / "1")
    assert json.loads((tmp_path / "1" / "config.json").read_text())["vocab_size"] == 502
    again = Encoder.from_pretrained(tmp_path / "1")
    np.testing.assert_allclose(again.encode(real_texts[:5]), encoder.encode(real_texts[:5]), rtol=0, atol=1e-6)


def test_a_tied_head_with_a_bias_grows_too(tiny_llama_folder: Path) -> None:
    encoder = convert(tiny_llama_folder, dtype="float32", device="cpu")
    encoder.head = Head(embedding(encoder), nn.Parameter(torch.randn(501)), tied=True)
    row = make_row(encoder).id
    logits = encoder.head(torch.randn(3, 56))
    assert logits.shape == (3, 502)
    assert encoder.head.bias[row] == 0


def decoder(config: PreTrainedConfig, tokenizer_of: Path, folder: Path) -> Path:
    """A random decoder of this shape, with the tokenizer of another folder."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer_of).save_pretrained(folder)
    return folder
