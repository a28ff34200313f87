"""What every variant trains: the shape of a decoder, and a folder of its random weights and tokenizer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.peers.wire import Job

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


@dataclass(frozen=True)
class Condition:
    """What every variant does in turn. Each benchmark says what its rows are, and what a worker is told of them."""

    name: str
    shape: Mapping[str, Any]
    tune: str
    batch: int
    tokens: int
    device: str

    work: ClassVar[str]
    """The benchmark's name; its workers are the modules that begin with it."""
    one_batch: ClassVar[bool] = False
    """Whether every step has the same rows, so that the first steps of all variants have one loss."""

    @property
    def dtype(self) -> str:
        """float32 on CPU, mixed precision on a GPU."""
        return "bfloat16" if self.device == "cuda" else "float32"

    def job(self, folder: Path, attention: str) -> Job:
        """What a worker is told."""
        raise NotImplementedError

    def write_rows(self, folder: Path) -> None:
        """Put the rows to train on into the folder."""
        raise NotImplementedError

    def unlike(self, facts: Mapping[str, Any], ours: Mapping[str, Any], allowed: float) -> str:
        """What a variant computes otherwise than we do, beyond that relative difference; "" if nothing."""
        difference = abs(facts["loss"] - ours["loss"]) / ours["loss"]
        if difference <= allowed:
            return ""
        return f"computes the loss {facts['loss']:.6f} where bothways computes {ours['loss']:.6f} on the same batch"

    def make(self, folder: Path) -> None:
        """A random decoder with a tokenizer of one token per word, and the rows."""
        make_decoder(self.shape, self.tokens, folder)
        self.write_rows(folder)

    def common(self, folder: Path, attention: str) -> dict[str, Any]:
        """What the workers of all benchmarks are told."""
        return {
            "folder": str(folder),
            "tune": self.tune,
            "attention": attention,
            "batch": self.batch,
            "tokens": self.tokens,
            "device": self.device,
            "dtype": self.dtype,
        }


def words(size: int) -> list[str]:
    """The vocabulary: word number n is token n."""
    return [*SPECIAL, *(f"w{number}" for number in range(len(SPECIAL), size))]


def make_decoder(shape: Mapping[str, Any], tokens: int, folder: Path) -> None:
    """A decoder of that shape with random weights, and a tokenizer of one token per word."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    shape = dict(shape)
    vocabulary = {word: number for number, word in enumerate(words(shape["vocab_size"]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=tokens,
        model_input_names=["input_ids", "attention_mask"],
        **special,
    ).save_pretrained(folder)
    config = AutoConfig.for_model(
        shape.pop("kind"),
        **shape,
        max_position_embeddings=max(tokens, 512),
        tie_word_embeddings=True,
        initializer_range=GAIN / math.sqrt(shape["hidden_size"]),
        bos_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
