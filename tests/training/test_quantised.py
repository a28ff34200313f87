"""QLoRA: trained on 4-bit layers, merged into the weights themselves; every layer is in its place again."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2Model
from transformers.pytorch_utils import Conv1D

from bothways import MNTP, Encoder, convert, mntp
from bothways.errors import ConfigError
from bothways.training.adapters import attach, linear_layers, merge
from bothways.training.quantised import four_bit
from bothways.training.settings import Training

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SETTINGS = MNTP(
    steps=6, batch_size=4, block_size=32, learning_rate=5e-3, precision="fp32", held_out_items=20, tune="qlora"
)


@pytest.fixture(params=DEVICES)
def encoder(request: pytest.FixtureRequest, tiny_llama_folder: Path) -> Encoder:
    pytest.importorskip("bitsandbytes")
    return convert(tiny_llama_folder, dtype="float32", device=request.param)


def test_layers_are_nf4_for_the_length_of_a_stage_and_themselves_again(encoder: Encoder) -> None:
    from bitsandbytes.nn import Linear4bit

    layers = linear_layers(encoder.model)
    before = {name: weight.clone() for name, weight in encoder.model.state_dict().items()}
    texts = ["one text", "another one"]
    plain = encoder.encode(texts)
    with four_bit(encoder.model, layers, torch.float32) as kept:
        assert kept == layers
        packed = [encoder.model.get_submodule(name) for name in layers]
        assert all(isinstance(layer, Linear4bit) and layer.weight.quant_type == "nf4" for layer in packed)
        assert all(layer.weight.quant_state.nested for layer in packed), "the scales are quantised too"
        # Half a byte a weight and the scales of blocks of 64, where float32 has four.
        assert sum(layer.weight.numel() for layer in packed) <= sum(w.weight.numel() for w in layers.values()) / 2 + 99
        assert {layer.weight.device.type for layer in layers.values()} == {"cpu"}
        assert 1e-3 < abs(encoder.encode(texts) - plain).max() < 0.5
    assert linear_layers(encoder.model) == layers
    assert {layer.weight.device.type for layer in layers.values()} == {encoder.device.type}
    assert all(torch.equal(before[name], weight) for name, weight in encoder.model.state_dict().items())


# peft 0.21 asks transformers by a name that 5.23 has deprecated.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_stage_learns_and_its_adapter_on_the_full_weights_gives_the_folder(
    encoder: Encoder, real_texts: list[str], tmp_path: Path
) -> None:
    from peft import PeftModel

    encoder.save_pretrained(tmp_path / "base")
    layers = {name: layer.weight.clone() for name, layer in linear_layers(encoder.model).items()}
    mntp(encoder, real_texts[:90], replace(SETTINGS, steps=30, merge_back=0.2), show_progress=False)
    before, after = encoder.record.stages[-1]["held_out"].values()
    assert after["loss"] < before["loss"] - 0.2
    merged = encoder.record.stages[-1]["held_out_merged"]
    assert 0 < abs(merged["loss"] - after["loss"]) < before["loss"] - after["loss"]
    assert encoder.adapter is not None
    scaling = SETTINGS.lora_alpha / SETTINGS.lora_r
    for name, weight in layers.items():
        a, b = (encoder.adapter.tensors[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
        expected = weight.cpu() + scaling * (b @ a)
        assert (encoder.model.get_submodule(name).weight.cpu() - expected).abs().max() < 1e-6
    encoder.save_pretrained(tmp_path / "tuned")
    base = Encoder.from_pretrained(tmp_path / "base", device="cpu")
    base.model = PeftModel.from_pretrained(base.model, str(tmp_path / "tuned" / "adapter")).eval().base_model.model
    texts = real_texts[:5]
    opened = Encoder.from_pretrained(tmp_path / "tuned", device="cpu").encode(texts)
    assert abs(base.encode(texts) - opened).max() < 1e-5


@pytest.mark.parametrize("device", DEVICES)
def test_conv1d_is_turned_twice(device: str) -> None:
    pytest.importorskip("bitsandbytes")
    model = GPT2Model(GPT2Config(vocab_size=31, n_embd=64, n_layer=2, n_head=2, n_positions=16)).eval().to(device)
    layers = linear_layers(model)
    before = {name: layer.weight.clone() for name, layer in layers.items()}
    with four_bit(model, layers, torch.float32) as kept:
        wrapper = attach(model, Training(tune="qlora", lora_r=3), kept)
        for name, weight in wrapper.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.1)
        adapter = merge(wrapper, "base", originals=kept)
    assert adapter.config.fan_in_fan_out
    for name, layer in linear_layers(model).items():
        assert isinstance(layer, Conv1D)
        a, b = (adapter.tensors[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
        assert (layer.weight - before[name] - (32 / 3 * (b @ a).T).to(device)).abs().max() < 1e-6


def test_an_error_leaves_every_layer_in_its_place(encoder: Encoder, real_texts: list[str]) -> None:
    layers = linear_layers(encoder.model)
    with torch.no_grad():
        encoder.model.layers[1].input_layernorm.weight[3] = float("nan")
    with pytest.raises(Exception, match="not finite"):
        mntp(encoder, real_texts[:60], replace(SETTINGS, held_out_items=0), show_progress=False)
    assert linear_layers(encoder.model) == layers


def test_what_is_missing_is_said_with_the_way_out(tiny_llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = convert(tiny_llama_folder, device="cpu").model
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    wanted = r'tune="qlora" needs bitsandbytes: pip install "bothways\[qlora\]"\. Use tune="lora"'
    with pytest.raises(ConfigError, match=wanted), four_bit(model, linear_layers(model), torch.float32):
        pass


def test_a_device_it_does_not_compute_on_is_said(tiny_llama_folder: Path) -> None:
    pytest.importorskip("bitsandbytes")
    model = convert(tiny_llama_folder, device="cpu").model.to("meta")
    wanted = "bitsandbytes computes no 4-bit layer on meta here"
    with pytest.raises(ConfigError, match=wanted), four_bit(model, linear_layers(model), torch.float32):
        pass
