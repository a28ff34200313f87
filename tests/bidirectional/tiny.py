"""Tiny random decoders of many architectures, two to four layers each, with a local window of 4 where they have one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM, PreTrainedModel

VOCAB = 103
WINDOW = 4
ALTERNATING = ["sliding_attention", "full_attention"]

# Names that most configs agree on; a config ignores or aliases what it calls otherwise.
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 56,
    "max_position_embeddings": 64,
    # Wide enough that attention matters: at the usual 0.02 a random model hardly mixes tokens at all.
    "initializer_range": 0.12,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"moe_intermediate_size": 24, "num_experts_per_tok": 2}


@dataclass(frozen=True)
class Tiny:
    """What an architecture needs beside SHAPE, and where it runs."""

    changes: dict[str, Any] = field(default_factory=dict)
    backends: tuple[str, ...] = ("eager", "sdpa")
    windowed: bool = False


EAGER = ("eager",)
TINY: dict[str, Tiny] = {
    "apertus": Tiny(),
    "biogpt": Tiny(),
    "codegen": Tiny({"rotary_dim": 8}, EAGER),
    "cohere": Tiny(),
    "cohere2": Tiny({"sliding_window": WINDOW, "layer_types": ALTERNATING}, windowed=True),
    "falcon": Tiny({"alibi": False, "num_kv_heads": 2}),
    "gemma": Tiny({"head_dim": 12}),
    "gemma2": Tiny({"head_dim": 12, "sliding_window": WINDOW}, EAGER, windowed=True),
    "gemma3_text": Tiny({"head_dim": 12, "sliding_window": WINDOW, "layer_types": ALTERNATING}, windowed=True),
    "glm": Tiny({"head_dim": 12}),
    "gpt2": Tiny(),
    "gpt_bigcode": Tiny(),
    "gpt_neo": Tiny(
        {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": WINDOW}, EAGER, windowed=True
    ),
    "gpt_neox": Tiny(),
    "gpt_oss": Tiny(
        {
            "head_dim": 12,
            "sliding_window": WINDOW,
            "num_local_experts": 3,
            "num_experts_per_tok": 2,
            "layer_types": ALTERNATING,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
        EAGER,
        windowed=True,
    ),
    "gptj": Tiny({"rotary_dim": 8}, EAGER),
    "granite": Tiny(),
    "llama": Tiny(),
    "llama4_text": Tiny(
        {
            "num_hidden_layers": 4,
            "head_dim": 12,
            "intermediate_size_mlp": 40,
            "num_local_experts": 3,
            "attention_chunk_size": 6,
        }
    ),
    "mistral": Tiny({"sliding_window": WINDOW}, windowed=True),
    "mixtral": Tiny({"num_local_experts": 3}),
    "nemotron": Tiny({"head_dim": 12}),
    "olmo2": Tiny(),
    "openai-gpt": Tiny(backends=EAGER),
    "opt": Tiny({"ffn_dim": 56, "word_embed_proj_dim": 48}),
    "persimmon": Tiny(),
    "phi": Tiny(),
    "phi3": Tiny({"sliding_window": WINDOW}, windowed=True),
    "qwen2": Tiny(),
    "qwen3": Tiny({"head_dim": 12}),
    "qwen3_moe": Tiny({"head_dim": 12, "num_experts": 3, **EXPERTS}),
    "smollm3": Tiny(),
    "stablelm": Tiny({"partial_rotary_factor": 0.5}),
    "starcoder2": Tiny({"sliding_window": WINDOW}, windowed=True),
}
CASES = [(name, backend) for name, tiny in TINY.items() for backend in tiny.backends]

HYBRID = ["linear_attention", "full_attention"]
RECURRENT: dict[str, dict[str, Any]] = {
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "num_experts": 3,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_dim": 48, "conv_dim": 48},
    "mamba": {"state_size": 8, "time_step_rank": 4},
    "qwen3_next": {
        "layer_types": HYBRID,
        "head_dim": 12,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 12,
        "linear_value_head_dim": 12,
        "num_experts": 3,
        "shared_expert_intermediate_size": 24,
        **EXPERTS,
    },
    "rwkv": {"attention_hidden_size": 48},
}
"""Decoders with sub-modules that no mask opens."""
ALIBI: dict[str, dict[str, Any]] = {
    "bloom": {},
    "falcon": {"alibi": True},
    "mpt": {"n_layers": 2, "n_heads": 4, "d_model": 48, "max_seq_len": 64},
}
ALIBI_CASES = [("bloom", "eager"), ("falcon", "eager"), ("falcon", "sdpa"), ("mpt", "eager")]


def tiny(
    name: str, backend: str = "sdpa", *, head: bool = False, dtype: torch.dtype = torch.float32, **more: Any
) -> PreTrainedModel:
    """A random decoder in evaluation mode; the same one for the same arguments."""
    own = {} if name not in TINY else TINY[name].changes
    changes = {**SHAPE, **own, **RECURRENT.get(name, {}), **more}
    torch.manual_seed(0)
    kind = AutoModelForCausalLM if head else AutoModel
    model = kind.from_config(CONFIG_MAPPING[name](**changes), attn_implementation=backend)
    return model.to(dtype).eval()
