"""Tiny random decoders that serving engines take: heads of 64 numbers, a real tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

SHAPE: dict[str, Any] = {
    "vocab_size": 501,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    # vLLM has kernels for some sizes of heads only.
    "head_dim": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    # Wide enough that attention matters: at the usual 0.02 a random model hardly mixes tokens at all.
    "initializer_range": 0.12,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
WINDOW = 40
"""Tokens: some texts are longer."""
OWN: dict[str, dict[str, Any]] = {
    "gemma3_text": {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    "mistral": {"sliding_window": WINDOW},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 128},
}


def decoder(family: str, tokenizer_of: Path, folder: Path, **changes: Any) -> Path:
    """Writes a random decoder of a family to `folder`, with the tokenizer of another one."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**{**SHAPE, **OWN.get(family, {}), **changes})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tokenizer_of / name).read_bytes())
    return folder
