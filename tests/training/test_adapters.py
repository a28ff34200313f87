"""LoRA: found without names, merged into what was trained, and kept in a form that peft itself opens."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, GPT2Config, GPT2Model, MixtralConfig, MixtralModel

from bothways import Encoder, convert
from bothways.encoder import Adapter
from bothways.training.adapters import attach, linear_layers, merge
from bothways.training.settings import Training

SETTINGS = Training(lora_r=3, lora_alpha=7)


def shaken(wrapper: torch.nn.Module) -> None:
    """As after some training: peft starts with B = 0, which is no change at all."""
    for name, weight in wrapper.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)


@pytest.fixture
def encoder(tiny_llama_folder: Path) -> Encoder:
    return convert(tiny_llama_folder, device="cpu")


def test_every_matrix_of_the_layers_is_found(encoder: Encoder) -> None:
    names = linear_layers(encoder.model)
    assert len(names) == 3 * 7
    assert {name.rsplit(".", 1)[-1] for name in names} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip


def test_routers_of_experts_are_left_alone() -> None:
    config = MixtralConfig(
        vocab_size=31, hidden_size=24, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=5,
    )  # fmt: skip
    names = linear_layers(MixtralModel(config))
    assert {name.rsplit(".", 1)[-1] for name in names} == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_conv1d_layers_are_merged_too() -> None:
    model = GPT2Model(GPT2Config(vocab_size=31, n_embd=24, n_layer=2, n_head=2, n_positions=16)).eval()
    ids = torch.tensor([[3, 5, 7]])
    wrapper = attach(model, SETTINGS)
    shaken(wrapper)
    wrapper.eval()
    with torch.no_grad():
        applied = model(ids).last_hidden_state
        merge(wrapper, "base")
        assert (model(ids).last_hidden_state - applied).abs().max() < 1e-5


def test_merged_equals_applied_and_the_model_is_plain_again(encoder: Encoder) -> None:
    names, kind = list(encoder.model.state_dict()), type(encoder.model)
    texts = ["one text", "another, longer text"]
    plain = encoder.encode(texts)
    wrapper = attach(encoder.model, SETTINGS)
    shaken(wrapper)
    applied = encoder.encode(texts)
    adapter = merge(wrapper, "the base")
    assert abs(encoder.encode(texts) - applied).max() < 1e-6
    assert abs(applied - plain).max() > 1e-2
    assert list(encoder.model.state_dict()) == names
    assert type(encoder.model) is kind
    assert isinstance(adapter, Adapter)
    assert adapter.config.base_model_name_or_path == "the base"
    assert sorted(adapter.config.target_modules) == list(adapter.config.target_modules)


def test_peft_itself_opens_the_adapter(encoder: Encoder, tmp_path: Path) -> None:
    from peft import PeftModel

    encoder.save_pretrained(tmp_path / "base")
    wrapper = attach(encoder.model, SETTINGS)
    shaken(wrapper)
    encoder.adapter = merge(wrapper, str(tmp_path / "base"))
    encoder.save_pretrained(tmp_path / "tuned")
    with warnings.catch_warnings():
        # peft asks transformers for a property by its old name.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        opened = PeftModel.from_pretrained(AutoModel.from_pretrained(tmp_path / "base"), tmp_path / "tuned" / "adapter")
    merged = AutoModel.from_pretrained(tmp_path / "tuned")
    ids = torch.tensor([[0, 5, 6, 7]])
    with torch.no_grad():
        difference = opened.eval()(input_ids=ids).last_hidden_state - merged(input_ids=ids).last_hidden_state
    assert difference.abs().max() < 1e-5


def test_a_second_stage_starts_from_the_merged_weights(encoder: Encoder) -> None:
    for _ in range(2):
        wrapper = attach(encoder.model, SETTINGS)
        shaken(wrapper)
        adapter = merge(wrapper, "base")
    assert all(name.startswith("base_model.model.layers.") for name in adapter.tensors)
    assert len(adapter.tensors) == 2 * len(linear_layers(encoder.model))
