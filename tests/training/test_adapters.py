"""Adapters: found without names, merged into what was trained, and kept in a form that peft itself opens."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import set_peft_model_state_dict
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedModel

from bothways import Encoder, convert
from bothways.encoder import Adapter
from bothways.errors import TrainingError
from bothways.training.adapters import attach, linear_layers, merge
from bothways.training.settings import Training, Tune

SETTINGS = Training(lora_r=3, lora_alpha=7)


def shaken(wrapper: torch.nn.Module) -> None:
    """As after some training: peft starts with B = 0, which is no change at all."""
    for name, weight in wrapper.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
        if "magnitude" in name:
            with torch.no_grad():
                weight.mul_(torch.empty_like(weight).uniform_(0.7, 1.4))


def of_family(name: str, **shape: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    usual = {"vocab_size": 31, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return AutoModel.from_config(CONFIG_MAPPING[name](**{**usual, **shape})).eval()


FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_positions": 16},
    "gpt_neox": {"intermediate_size": 20, "max_position_embeddings": 16},
    "bloom": {},
    "falcon": {},
    "gemma2": {"head_dim": 12, "num_key_value_heads": 1, "intermediate_size": 20},
    "mixtral": {"intermediate_size": 20, "num_key_value_heads": 1, "num_local_experts": 5},
}


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
    names = linear_layers(of_family("mixtral", **FAMILIES["mixtral"]))
    assert {name.rsplit(".", 1)[-1] for name in names} == {"q_proj", "k_proj", "v_proj", "o_proj"}


@pytest.mark.parametrize("tune", ["lora", "dora"])
@pytest.mark.parametrize("name", FAMILIES)
def test_merged_equals_applied_in_every_family(name: str, tune: Tune) -> None:
    """gpt2 among them, whose Conv1D has its matrix the other way round. Weights, not states, to be free of depth."""
    model = of_family(name, **FAMILIES[name])
    ids = torch.tensor([[3, 5, 7, 2, 30]])
    with torch.no_grad():
        plain = model(ids).last_hidden_state
        wrapper = attach(model, replace(SETTINGS, tune=tune))
        assert (model(ids).last_hidden_state - plain).abs().max() < 1e-5, "fresh adapters change nothing"
        shaken(wrapper)
        wrapper.eval()
        layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}
        rows = {name: torch.randn(7, layer.in_features) for name, layer in layers.items()}
        applied, states = {name: layer(rows[name]) for name, layer in layers.items()}, model(ids).last_hidden_state
        merge(wrapper, "base")
        for name, expected in applied.items():
            assert (model.get_submodule(name)(rows[name]) - expected).abs().max() <= 1e-6 * expected.abs().max().clamp(
                1
            )
        assert (model(ids).last_hidden_state - states).abs().max() < 1e-5
        assert (model(ids).last_hidden_state - plain).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["gpt2", "mixtral"])
@pytest.mark.parametrize("tune", ["lora", "dora"])
def test_merged_back_is_the_mean_and_the_adapter_still_makes_it(name: str, tune: Tune) -> None:
    before = of_family(name, **FAMILIES[name])
    whole, part = copy.deepcopy(before), copy.deepcopy(before)
    adapters = []
    for model, share in ((whole, 0.0), (part, 0.3)):
        torch.manual_seed(1)
        wrapper = attach(model, replace(SETTINGS, tune=tune))
        shaken(wrapper)
        adapters.append(merge(wrapper, "base", merge_back=share))
    for weight, trained, mean in zip(before.parameters(), whole.parameters(), part.parameters(), strict=True):
        torch.testing.assert_close(mean, torch.lerp(trained, weight, 0.3), rtol=0, atol=1e-6)
    again = attach(copy.deepcopy(before), replace(SETTINGS, tune=tune))
    set_peft_model_state_dict(again, dict(adapters[1].tensors))
    merge(again, "base")
    for mean, made in zip(part.parameters(), again.base_model.model.parameters(), strict=True):
        torch.testing.assert_close(made, mean, rtol=0, atol=1e-6)


def test_dora_starts_exactly_where_the_model_is_also_in_bfloat16() -> None:
    model = of_family("gemma2", **FAMILIES["gemma2"]).bfloat16()
    before = copy.deepcopy(model)
    merge(attach(model, replace(SETTINGS, tune="dora")), "base")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))


def test_dora_refuses_an_output_without_a_direction() -> None:
    model = of_family("gpt_neox", **FAMILIES["gpt_neox"])
    with torch.no_grad():
        model.layers[1].attention.dense.weight[5] = 0
    with pytest.raises(TrainingError, match=r"layers\.1\.attention\.dense has an output whose weights are all 0"):
        attach(model, replace(SETTINGS, tune="dora"))
    assert len(linear_layers(model)) == 8, "nothing was put on"


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


@pytest.mark.parametrize("tune", ["lora", "dora"])
@pytest.mark.parametrize("merge_back", [0.0, 0.4])
def test_peft_itself_opens_the_adapter(encoder: Encoder, tmp_path: Path, tune: Tune, merge_back: float) -> None:
    from peft import PeftModel

    encoder.save_pretrained(tmp_path / "base")
    wrapper = attach(encoder.model, replace(SETTINGS, tune=tune))
    shaken(wrapper)
    encoder.adapter = merge(wrapper, str(tmp_path / "base"), merge_back=merge_back)
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
