"""Learning, on the trained decoder that comes with the package: what it knows, and what a few steps teach it."""

from __future__ import annotations

import json
import math
from pydoc_data import topics

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from bothways import MNTP, Supervised, convert, mntp, supervised
from bothways.data import Document, Example
from bothways.evaluation import Retrieval, score
from bothways.evaluation.baselines import random_weights
from bothways.loading import EMBEDDED

MOST_BYTES = 16 * 2**20


def test_it_is_small_bfloat16_and_says_how_it_was_made() -> None:
    weights = EMBEDDED / "model.safetensors"
    assert weights.stat().st_size <= MOST_BYTES
    with safe_open(weights, framework="pt") as tensors:
        dtypes = {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    assert dtypes == {"BF16"}
    record = json.loads((EMBEDDED / "pretraining.json").read_text())
    assert record["script"] == "scripts/pretrain_tiny.py"
    assert record["tokens"] >= 30e6
    bits = record["held_out_bits_per_byte"]
    assert bits["trained"] < bits["unigram"] < bits["random weights"]


def test_it_predicts_text_it_has_never_seen() -> None:
    """Python's help topics are in no source of its pre-training."""
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype="float32")
    ids = torch.tensor([tokenizer(topics.topics["with"])["input_ids"][:256]])
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss
    assert loss < 0.7 * math.log(len(tokenizer))


def test_a_trained_decoder_is_certified_and_not_the_random_one() -> None:
    encoder = convert("embedded")
    assert encoder.record.certificate.direction == "bidirectional"
    assert encoder.dtype == torch.bfloat16
    texts = ["open a file and read its lines", "read the lines of a file", "the sum of two numbers"]
    vectors, random = encoder.encode(texts), random_weights(encoder).encode(texts)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    assert np.abs(vectors - random).max() > 0.01


def test_a_few_steps_of_mntp_lower_the_held_out_loss(real_texts: list[str]) -> None:
    encoder = convert("embedded")
    settings = MNTP(steps=12, batch_size=8, block_size=128, learning_rate=1e-3, warm_up=0.2, tune="full")
    mntp(encoder, real_texts[60:], settings, held_out=real_texts[:60], show_progress=False)
    held_out = encoder.record.stages[-1]["held_out"]
    assert held_out["12"]["loss"] < held_out["0"]["loss"] - 0.2
    assert held_out["12"]["accuracy"] > held_out["0"]["accuracy"]
    assert encoder.record.certificate.direction == "bidirectional"


def test_a_few_supervised_steps_raise_held_out_retrieval(real_texts: list[str]) -> None:
    """The task: the second half of a paragraph by its first half."""
    halves = [(text[: len(text) // 2], text[len(text) // 2 :]) for text in real_texts if len(text) > 120]
    train, test = halves[80:], halves[:80]
    task = Retrieval(
        "halves",
        [Document(str(i), first) for i, (first, _) in enumerate(test)],
        [Document(str(i), second) for i, (_, second) in enumerate(test)],
        {str(i): {str(i): 1} for i in range(len(test))},
    )
    encoder = convert("embedded", max_length=64)
    with pytest.warns(UserWarning, match="were cut"):
        before = score(encoder, task)
    settings = Supervised(
        steps=15, batch_size=32, learning_rate=5e-4, temperature=0.05, tune="full", max_length=48, held_out_items=0
    )
    supervised(encoder, [Example(*pair) for pair in train], settings, show_progress=False)
    with pytest.warns(UserWarning, match="were cut"):
        after = score(encoder, task)
    assert after["ndcg@10"] > before["ndcg@10"] + 0.05
