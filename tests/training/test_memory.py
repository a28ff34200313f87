"""Activations that are computed twice: the same result, bit for bit, under adapters and in two-way mixers."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from bothways import MNTP, convert, mntp
from bothways.errors import TrainingError
from bothways.hardware import is_out_of_memory

sys.path.append(str(Path(__file__).parents[1] / "bidirectional"))

from tiny import tiny

SETTINGS = MNTP(steps=3, batch_size=3, block_size=24, precision="fp32", held_out_items=0, lora_dropout=0.3)


@pytest.mark.parametrize("tune", ["lora", "full"])
@pytest.mark.parametrize("name", ["llama", "lfm2", "mamba"])
def test_checkpointed_equals_plain(
    name: str, tune: str, tiny_llama_folder: Path, real_texts: list[str], tmp_path: Path
) -> None:
    """Float32, dropout on; lfm2 and mamba have mixers that run in both directions."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_folder)
    tiny(name, "eager" if name == "mamba" else "sdpa", head=True, vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found = []
    for wish in ("off", "on"):
        encoder = convert(tmp_path, dtype="float32", device="cpu")
        counted = count_forwards(encoder.model)
        mntp(encoder, real_texts[:60], replace(SETTINGS, tune=tune, gradient_checkpointing=wish), show_progress=False)
        found.append((encoder, counted[0]))
        assert not encoder.model.is_activation_checkpointing
    (plain, once), (checkpointed, twice) = found
    assert twice > once
    for (key, expected), value in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        assert torch.equal(expected, value), key


def count_forwards(model: torch.nn.Module) -> list[int]:
    """Counts how often a norm inside the first decoder layer computes while gradients are taken."""
    counted = [0]
    (layers,) = [child for child in model.children() if isinstance(child, torch.nn.ModuleList)]
    inner = next(child for child in layers[0].children() if "norm" in type(child).__name__.lower())

    def count(module: torch.nn.Module, *_: object) -> None:
        counted[0] += module.training

    inner.register_forward_hook(count)
    return counted


def test_a_model_without_checkpointing_says_so(
    tiny_llama_folder: Path, real_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = convert(tiny_llama_folder, dtype="float32", device="cpu")
    monkeypatch.setattr(type(encoder.model), "supports_gradient_checkpointing", False)
    with pytest.raises(TrainingError, match='gradient_checkpointing="on": LlamaModel does not support') as caught:
        mntp(encoder, real_texts[:60], replace(SETTINGS, gradient_checkpointing="on"), show_progress=False)
    assert 'gradient_checkpointing="off"' in str(caught.value)


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 8 bytes"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(problem: Exception, expected: bool) -> None:
    assert is_out_of_memory(problem) is expected
