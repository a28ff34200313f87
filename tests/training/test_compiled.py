"""Compiled decoder layers give what plain ones give; where nothing can be compiled, it is said in one error."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bothways import MNTP, convert, mntp
from bothways.errors import TrainingError
from bothways.training.compiled import compiled

SETTINGS = MNTP(
    steps=3, batch_size=4, block_size=None, precision="fp32", held_out_items=0, lora_dropout=0.0, compile=True
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_equals_plain(tiny_llama_folder: Path, real_texts: list[str]) -> None:
    """Float32, rows of many lengths in packs; afterwards the model is the plain one again."""
    found = []
    for wanted in (False, True):
        torch._dynamo.reset()
        encoder = convert(tiny_llama_folder, dtype="float32", device="cpu")
        settings = replace(SETTINGS, compile=wanted, tokens_per_batch=300)
        mntp(encoder, real_texts[:60], settings, show_progress=False)
        found.append(dict(encoder.named_parameters()))
        assert (torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0) == wanted
        assert all(layer._compiled_call_impl is None for layer in encoder.model.layers)
    assert max(float((found[0][name] - found[1][name]).abs().max()) for name in found[0]) <= 1e-5


def test_what_does_not_compile_is_said_in_one_error(
    tiny_llama_folder: Path, real_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("\nfatal error: Python.h: No such file or directory\ncompilation terminated.")

    monkeypatch.setattr(torch, "compile", broken)
    encoder = convert(tiny_llama_folder, dtype="float32", device="cpu")
    with pytest.raises(TrainingError, match=r"does not work here \(fatal error: Python\.h: No such file") as caught:
        mntp(encoder, real_texts[:60], SETTINGS, show_progress=False)
    assert "Install a C++ compiler and Python's headers, or use compile=False." in str(caught.value)


def test_without_the_wish_nothing_happens(tiny_llama_folder: Path) -> None:
    encoder = convert(tiny_llama_folder, dtype="float32", device="cpu")
    with compiled(encoder, wanted=False):
        assert all(layer._compiled_call_impl is None for layer in encoder.model.layers)
