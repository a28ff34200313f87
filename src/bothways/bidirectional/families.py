"""What no rule can know of single families of decoders, by `model_type` (or class, if it has none), with reasons.

A value may be a function of the config that it is set on. A new architecture needs an entry here only if the rules of
`twin` and `layers` do not build it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import cycle, islice
from typing import Any

from transformers import PreTrainedConfig

Settings = dict[str, Any]


def given(config: PreTrainedConfig, table: Mapping[str, Settings]) -> None:
    """Sets what a table says of a config's family."""
    for name, value in table.get(config.model_type or type(config).__name__, {}).items():
        setattr(config, name, value(config) if callable(value) else value)


def _taking_turns(*kinds: str) -> Callable[[PreTrainedConfig], list[str]]:
    return lambda config: list(islice(cycle(kinds), config.num_hidden_layers))


WINDOWED = _taking_turns("sliding_attention", "full_attention")
ROTARY = {"rope_type": "default", "rope_theta": 1e4}

# Per-layer embeddings and the indexer are off by default, and without the latter the class cannot be built.
QWEN4_EXP: Settings = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 32,
    "indexer_budget": 32,
    "indexer_compress_ratio": 4,
    "ple_layer_ids": [2],
    "number_of_conv_states": 3,
    # They start anew after each end of text.
    "eos_token_id": 2,
}

STATED: dict[str, Settings] = {
    # By default every layer is of one kind, and the other kind is what makes the family.
    "bamba": {"attn_layer_indices": lambda config: list(range(1, config.num_hidden_layers, 4))},
    "cohere_compass_text": {
        "layer_types": WINDOWED,
        # One set for each kind of layer, and no default.
        "rope_parameters": {"full_attention": dict(ROTARY), "sliding_attention": dict(ROTARY)},
    },
    "dots1": {"layer_types": WINDOWED, "n_routed_experts": 128, "n_shared_experts": 2, "num_experts_per_tok": 6},
    "granitemoehybrid": {"layer_types": _taking_turns("linear_attention", "full_attention")},
    "laguna": {"layer_types": WINDOWED},
    "lfm2": {"layer_types": _taking_turns("conv", "full_attention")},
    "lfm2_moe": {"layer_types": _taking_turns("conv", "full_attention")},
    "mellum": {"layer_types": WINDOWED},
    "minimax_m3_vl_text": {"layer_types": _taking_turns("full_attention", "minimax_m3_sparse")},
    "qwen4_exp_text": QWEN4_EXP,
    # Nothing can be built without these, and there are no defaults.
    "DbrxAttentionConfig": {"rope_theta": 1e4, "clip_qkv": 8.0},
    "deepseek_v2": {"num_experts_per_tok": 6, "n_group": 1, "topk_group": 1},
    "emu3": {"vocabulary_map": {"<image>": 5, "<|extra_200|>": 6, "<|visual token 000000|>": 7}},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128, "num_experts": 64, "moe_topk": 8},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": lambda config: config.num_attention_heads},
    "xmod": {"default_language": "en_XX"},
}
"""What published checkpoints say and the defaults of the config class leave out."""

FITTED: dict[str, Settings] = {
    # A hash table needs a prime of rows. Patches of fixed length: where they end must not depend on a second model.
    "blt": {"encoder_hash_byte_group_vocab": 101, "patching_mode": "static", "patch_in_forward": False},
    "blt_global_transformer": {"encoder_cross_output_size": 128},
    "blt_local_decoder": {"hidden_size_global": 64},
    "blt_local_encoder": {"hidden_size_global": 64},
    # Compressed blocks that end within a short text.
    "deepseek_v4": {
        "compress_rates": lambda config: {kind: min(rate, 4) for kind, rate in config.compress_rates.items()}
    },
    # A head is its rotary and its other half, and the share is written down too.
    "dots3_note_text": {
        "head_dim": 32,
        "rope_parameters": lambda config: {
            kind: {**each, "partial_rotary_factor": 0.5} for kind, each in config.rope_parameters.items()
        },
    },
    "emu3_vqgan": {"channel_multiplier": (1, 1), "attn_resolutions": (1,), "base_channels": 32},
    # Written twice: as a list with an entry for each layer, and as this.
    "gpt_neo": {"attention_types": lambda config: [[list(config.attention_layers), 1]]},
    # The layers that are there, and how often they are run through.
    "hrm_text": {
        "num_layers_per_stack": 2,
        "num_hidden_layers": lambda config: 2 * config.H_cycles * (config.L_cycles + 1),
    },
    # Kinds come by period, and in the published model there is no attention among the first four layers.
    "jamba": {
        "num_hidden_layers": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 4,
        "expert_layer_offset": 1,
    },
    # Heads are not called those of Mamba here: an inner width of twice the hidden one.
    "mamba2": {"num_heads": 8},
    # The kinds are a pattern that is repeated.
    "recurrent_gemma": {"num_hidden_layers": lambda config: len(config.block_types)},
    # Positions are a grid, whose two parts of the width add up.
    "reformer": {"axial_pos_shape": (8, 16), "axial_pos_embds_dim": (32, 32), "num_buckets": 2},
    # Attention sees the hidden states beside the embeddings, and shares its weights with another such layer.
    "zamba": {
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
    },
    "zamba2": {
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "hybrid_layer_ids": [1, 3],
    },
}
"""Sizes that must fit each other in a way that their names do not show."""
