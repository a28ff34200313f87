"""Tiny random decoders of the families that llama.cpp is given, as folders: `from llama_families import ...`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

from bothways import Encoder, convert
from bothways.export.gguf_file import GgufFile
from bothways.export.gguf_tokens import SPLITS

WINDOW = 16
CHANGES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {"hidden_size": 96},
    "gemma": {"hidden_size": 96},
    # llama.cpp's gemma-embedding has a window in five of six layers.
    "gemma3_text": {"num_hidden_layers": 6, "sliding_window": WINDOW, "query_pre_attn_scalar": 32, "hidden_size": 96},
    "olmo2": {},
    "smollm3": {"num_hidden_layers": 4},
    "granite": {
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.7,
        "logits_scaling": 2.0,
    },
}


def tokenizer(texts: Sequence[str], kind: str = "bytes", vocab_size: int = 499) -> PreTrainedTokenizerFast:
    """A real one trained on texts: "bytes" splits as GPT-2 does, "words" as Qwen, "pieces" is SentencePiece's BPE."""
    if kind == "pieces":
        bytes_ = [f"<0x{number:02X}>" for number in range(256)]
        made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        special = ["<unk>", "<s>", "</s>", *bytes_]
        alphabet: list[str] = []
        vocab_size += 256
    else:
        made = Tokenizer(models.BPE())
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "bytes")
        pattern = next(pattern for pattern, name in SPLITS.items() if name == "qwen2")
        words = [pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level]
        made.pre_tokenizer = byte_level if kind == "bytes" else pre_tokenizers.Sequence(words)
        made.decoder = decoders.ByteLevel()
        special = ["<unk>", "<s>", "</s>"]
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    first = ("<s>", made.token_to_id("<s>"))
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[first])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="</s>", model_max_length=128
    )


def save_decoder(name: str, folder: Path, own: PreTrainedTokenizerFast, **changes: Any) -> Path:
    """A random decoder of a family and its tokenizer in a folder; some rows of its embedding belong to no token."""
    shape: dict[str, Any] = {
        "vocab_size": len(own) + 5,
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 96,
        "max_position_embeddings": 128,
        # Wide enough that attention matters: at the usual 0.02 a random model hardly mixes tokens at all.
        "initializer_range": 0.12,
        "pad_token_id": own.pad_token_id,
        "bos_token_id": own.bos_token_id,
        "eos_token_id": own.eos_token_id,
    }
    if name not in ("granite", "qwen2", "olmo2"):
        shape["head_dim"] = 32
    torch.manual_seed(0)
    config = CONFIG_MAPPING[name](**{**shape, **CHANGES[name], **changes})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            # Norms and biases start at a constant, so that one in the wrong place would not show.
            if key.endswith(("norm.weight", "bias")):
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    own.save_pretrained(folder)
    return folder


def save_encoder(name: str, folder: Path, own: PreTrainedTokenizerFast, **changes: Any) -> Path:
    """The same, converted: Gemma 3 by its native key."""
    base = save_decoder(name, folder / "base", own, **changes)
    windows = "native" if name == "gemma3_text" else "keep"
    encoder: Encoder = convert(base, dtype="float32", device="cpu", windows=windows)
    encoder.save_pretrained(folder / "encoder")
    return folder / "encoder"


def replanted(source: Path, out: Path, **keys: Any) -> Path:
    """A copy of a file with some keys of its architecture set, or left out where None."""
    file, reader = GgufFile(source), GGUFReader(source)
    writer = GGUFWriter(out, file.architecture)
    changes = {f"{file.architecture}.{key.replace('__', '.')}": value for key, value in keys.items()}
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = changes.get(name, field.contents())
        if value is not None:
            kind = field.types[0]
            inner = field.types[-1] if kind is GGUFValueType.ARRAY else None
            writer.add_key_value(name, value, kind, inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out
