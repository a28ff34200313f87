"""What every variant trains: the shape of a decoder, and a folder of its random weights, tokenizer and rows."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.wire import BATCH, TEXTS, Job

TUNES = ("lora", "full")
LLAMA: dict[str, Any] = {
    "kind": "llama",
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "intermediate_size": 1376,
}
CPU_SHAPES = {"vocab-32k": {**LLAMA, "vocab_size": 32_000}, "vocab-128k": {**LLAMA, "vocab_size": 128_256}}
CUDA_SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": {
        "kind": "qwen3",
        "vocab_size": 151_936,
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 3072,
    },
    "llama-3.2-1b": {
        "kind": "llama",
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "intermediate_size": 8192,
    },
}
TINY = {"hidden_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
GAIN = 1.1
"""What a random matrix multiplies lengths by: enough that attention, and so a causal mask, changes the loss."""
SPECIAL = ("<s>", "</s>", "_", "<unk>")
BATCHES = 8
"""Batches until the rows come round again."""


@dataclass(frozen=True)
class Condition:
    """What every variant does in turn."""

    name: str
    shape: Mapping[str, Any]
    tune: str
    batch: int
    tokens: int
    device: str

    @property
    def dtype(self) -> str:
        """float32 on CPU, mixed precision on a GPU."""
        return "bfloat16" if self.device == "cuda" else "float32"


def make(condition: Condition, folder: Path) -> None:
    """A random decoder with a tokenizer of one token per word, rows of words, and one masked batch."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    shape = dict(condition.shape)
    size = shape["vocab_size"]
    words = [*SPECIAL, *(f"w{number}" for number in range(len(SPECIAL), size))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=condition.tokens,
        model_input_names=["input_ids", "attention_mask"],
        **special,
    ).save_pretrained(folder)
    config = AutoConfig.for_model(
        shape.pop("kind"),
        **shape,
        max_position_embeddings=max(condition.tokens, 512),
        tie_word_embeddings=True,
        initializer_range=GAIN / math.sqrt(shape["hidden_size"]),
        bos_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    rng = random.Random(0)
    ids = [
        [rng.randrange(len(SPECIAL), size) for _ in range(condition.tokens)] for _ in range(BATCHES * condition.batch)
    ]
    (folder / TEXTS).write_text("\n".join(" ".join(words[i] for i in row) for row in ids) + "\n", encoding="utf-8")
    masked = [[(token, rng.random() < Job.mask_rate) for token in row] for row in ids[: condition.batch]]
    batch = {
        "input_ids": [[SPECIAL.index("_") if hidden else token for token, hidden in row] for row in masked],
        "labels": [[token if hidden else -100 for token, hidden in row] for row in masked],
    }
    (folder / BATCH).write_text(json.dumps(batch), encoding="utf-8")
