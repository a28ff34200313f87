"""Twins are tiny, keep every kind of layer and what says who sees whom, and come out the same every time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    BartForCausalLM,
    DeepseekV3Config,
    FalconH1Config,
    Gemma3Config,
    JambaConfig,
    Llama4Config,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MistralConfig,
    MistralModel,
    NemotronHConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3_5Config,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING

from bothways.bidirectional.twin import shrunken, tiny_decoder, twin_of

KINDS = ("layer_types", "layers_block_type", "mlp_layer_types", "attention_layers", "no_rope_layers")
WINDOWS = {"sliding_window", "sliding_window_size", "attention_window_size", "window_size", "attention_chunk_size"}


def _gemma3() -> Gemma3Config:
    local, far = {"rope_type": "default", "rope_theta": 1e4}, {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "sliding_window": 1024,
        "rope_parameters": {"sliding_attention": local, "full_attention": far},
        "use_bidirectional_attention": True,
    }
    vision = {"model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304}
    return Gemma3Config(
        text_config=text,
        vision_config={
            **vision,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": 896,
            "patch_size": 14,
        },
    )


YARN = {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096, "rope_theta": 1e4, "mscale": 1.0}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 4096}
# As published: sizes, lists with an entry for each layer, rotary settings, parts for other media.
PUBLISHED: dict[str, PreTrainedConfig] = {
    "deepseek-v3": DeepseekV3Config(rope_parameters={**YARN, "mscale_all_dim": 1.0, "beta_fast": 32, "beta_slow": 1}),
    "falcon-h1-7b": FalconH1Config(
        hidden_size=3072,
        num_hidden_layers=44,
        num_attention_heads=12,
        num_key_value_heads=2,
        mamba_d_ssm=3072,
        mamba_n_heads=24,
        mamba_d_head=128,
        mamba_d_state=256,
        head_dim=128,
    ),
    "gemma-3-4b": _gemma3(),
    "jamba-mini": JambaConfig(),
    "llama-4-scout": Llama4Config(
        text_config={"num_local_experts": 16, "num_hidden_layers": 48, "attention_chunk_size": 8192}
    ),
    "mistral-7b": MistralConfig(sliding_window=4096, num_key_value_heads=8, num_attention_heads=32),
    "nemotron-h-8b": NemotronHConfig(
        hidden_size=4096, layers_block_type=(["linear_attention", "mlp"] * 3 + ["full_attention", "mlp"]) * 6
    ),
    "phi-3-mini": Phi3Config(
        sliding_window=262144,
        rope_parameters={**LONG, "short_factor": [1.0] * 48, "long_factor": [1.5] * 48},
        max_position_embeddings=131072,
    ),
    "qwen2-windowed": Qwen2Config(use_sliding_window=True, sliding_window=4096, max_window_layers=21),
    "qwen3-8b": Qwen3Config(
        vocab_size=151936,
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40960,
        eos_token_id=151645,
    ),
    "qwen3.5": Qwen3_5Config(),
}
ENTRIES = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - {"gemma4_assistant", "gemma4_unified_assistant"})


def parts(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    inner = [value for value in vars(config).values() if isinstance(value, PreTrainedConfig)]
    return [config, *(part for one in inner for part in parts(one))]


def plain(config: PreTrainedConfig) -> dict[str, Any]:
    return {**json.loads(config.to_json_string(use_diff=False)), "_name_or_path": "", "transformers_version": ""}


def hidden_of(model: PreTrainedModel, ids: Tensor) -> Tensor:
    with torch.no_grad():
        hidden: Tensor = model(input_ids=ids, use_cache=False)[0]
    return hidden


@pytest.mark.parametrize("config", PUBLISHED.values(), ids=list(PUBLISHED))
def test_a_published_config_gives_a_tiny_model_that_runs(config: PreTrainedConfig) -> None:
    small = shrunken(config)
    assert type(small) is type(config)
    model = MODEL_MAPPING[type(small)]._from_config(small, attn_implementation="eager").eval()
    assert sum(parameter.numel() for parameter in model.parameters()) < 2_000_000
    ids = torch.randint(5, 90, (2, 13), generator=torch.Generator().manual_seed(0))
    assert hidden_of(model, ids).isfinite().all()


@pytest.mark.parametrize("config", PUBLISHED.values(), ids=list(PUBLISHED))
def test_what_says_who_sees_whom_survives(config: PreTrainedConfig) -> None:
    before = plain(config)
    small = shrunken(config, window=5)
    assert plain(config) == before, "the given config is left alone"
    for old, new in zip(parts(config), parts(small), strict=True):
        for name in KINDS:
            kinds = getattr(old, name, None)
            if kinds:
                assert set(getattr(new, name)) == set(kinds), f"{old.model_type}: {name}"
                assert 2 <= len(getattr(new, name)) <= 6
        for name, value in vars(old).items():
            if name in WINDOWS:
                assert getattr(new, name) == (5 if value else value)
            if name in ("is_causal", "use_bidirectional_attention", "use_sliding_window", "alibi"):
                assert getattr(new, name) == value
            if "dropout" in name and isinstance(value, float):
                assert getattr(new, name) == 0


def test_a_flag_that_was_set_after_loading_survives() -> None:
    config = LlamaConfig()
    config.is_causal = False
    assert shrunken(config).is_causal is False


@pytest.mark.parametrize("name", ENTRIES)
def test_every_default_shrinks_and_a_shrunken_config_shrinks_to_itself(name: str) -> None:
    small = shrunken(CONFIG_MAPPING[name]())
    assert plain(shrunken(small)) == plain(small)
    for old, new in zip(parts(CONFIG_MAPPING[name]()), parts(small), strict=True):
        for key in KINDS:
            kinds = getattr(old, key, None)
            assert not kinds or set(getattr(new, key)) == set(kinds)


@pytest.mark.parametrize("name", ["gemma3", "gpt_neo", "jamba", "llama4_text", "lfm2", "zamba2"])
def test_a_shrunken_config_can_be_written_and_read(name: str, tmp_path: Path) -> None:
    small = shrunken(CONFIG_MAPPING[name](), window=7)
    small.save_pretrained(tmp_path)
    assert plain(AutoConfig.from_pretrained(tmp_path)) == plain(small)


def test_the_same_arguments_give_the_same_model_and_no_global_state_is_touched() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again = tiny_decoder("jamba", "eager"), tiny_decoder("jamba", "sdpa")
    other = tiny_decoder("jamba", "eager", seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert not first.training
    states = [model.state_dict() for model in (first, again, other)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert any(not torch.equal(value, states[2][key]) for key, value in states[0].items())


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "opt", "mamba2", "gpt2", "qwen3_moe", "rwkv"])
def test_mixing_is_visible_and_attention_is_not_saturated(name: str) -> None:
    model = tiny_decoder(name, "eager")
    ids = torch.randint(5, 90, (1, 13), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[0, 6] = 91
    change = (hidden_of(model, other) - hidden_of(model, ids)).norm(dim=-1) / hidden_of(model, ids).norm(dim=-1)
    assert change[0, :6].max() < 1e-5
    assert change[0, 7] > 1e-2
    assert change[0, 8:].max() > 1e-2


def test_the_class_is_the_headless_one_where_there_is_one() -> None:
    assert type(tiny_decoder("llama", "eager")) is LlamaModel
    assert type(tiny_decoder("llama", "eager", head=True)) is LlamaForCausalLM
    assert type(tiny_decoder("bart", "eager")) is BartForCausalLM


def test_a_twin_is_of_the_models_class_and_backend_with_the_window_asked_for() -> None:
    config = MistralConfig(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=40,
        vocab_size=99, sliding_window=64,
    )  # fmt: skip
    model = MistralModel._from_config(config, attn_implementation="sdpa")
    twin = twin_of(model, window=3)
    assert type(twin) is MistralModel
    assert twin.config._attn_implementation == "sdpa"
    assert (twin.config.sliding_window, model.config.sliding_window) == (3, 64)
    ids = torch.randint(5, 90, (1, 13), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[0, 0] = 91
    moved = (hidden_of(twin, other) - hidden_of(twin, ids)).norm(dim=-1)[0] > 1e-6
    layers = twin.config.num_hidden_layers
    assert moved.tolist() == [token <= 2 * layers for token in range(13)], "three tokens, itself among them, a layer"
