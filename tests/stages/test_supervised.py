"""Supervised: what counts as a negative, a loss that no cut of the memory changes, and that it teaches."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from bothways import Encoder, Supervised, convert, supervised
from bothways.data import Example
from bothways.errors import DataError
from bothways.packing import packing, packs
from bothways.stages.supervised import _Rows
from bothways.training.contrastive import contrastive_parts
from bothways.training.loop import Place
from bothways.training.losses import info_nce

SMALL = Supervised(steps=2, batch_size=6, max_length=24, learning_rate=1e-3, precision="fp32", held_out_items=12)
ALONE = Place(0, 1)


@pytest.fixture
def encoder(tiny_llama_folder: Path) -> Encoder:
    return convert(tiny_llama_folder, dtype="float32", device="cpu")


def examples(texts: list[str], negatives: int = 2) -> list[Example]:
    return [
        Example(
            text[:25], text[25:], tuple(texts[(i + j) % len(texts)] for j in range(1, 1 + negatives)), "find the rest"
        )
        for i, text in enumerate(texts)
    ]


def batch_loss(encoder: Encoder, settings: Supervised, rows: list[Example]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one batch of all rows, summed over its parts."""
    encoder.zero_grad()
    pairs = _Rows(encoder, rows, settings).pairs(range(len(rows)))
    loss = 0.0
    cut = partial(packs, tokens=settings.tokens_per_batch or 8192)
    with packing(encoder.model):
        for part in contrastive_parts(encoder, pairs, settings, (0, 0), ALONE, cut):
            part.loss.backward()
            loss += part.loss.item()
    return loss, {name: weight.grad.clone() for name, weight in encoder.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("changes", [
    {"tokens_per_batch": 1}, {"tokens_per_batch": 100}, {"tokens_per_batch": 100, "grad_cache": True},
])  # fmt: skip
def test_the_memory_never_changes_loss_or_gradient(encoder: Encoder, real_texts: list[str], changes: dict) -> None:
    """Float32, no dropout."""
    rows = examples(real_texts[:7])
    whole, expected = batch_loss(encoder, SMALL, rows)
    cut, found = batch_loss(encoder, replace(SMALL, **changes), rows)
    assert cut == pytest.approx(whole, rel=1e-5)
    size = max(grad.abs().max() for grad in expected.values())
    assert all((found[name] - grad).abs().max() < 2e-6 * size for name, grad in expected.items())


def test_the_cached_gradient_repeats_the_dropout(encoder: Encoder, real_texts: list[str]) -> None:
    encoder.train()
    for layer in encoder.model.layers:
        layer.self_attn.attention_dropout = 0.4
    settings = replace(SMALL, tokens_per_batch=100)
    kept, expected = batch_loss(encoder, settings, examples(real_texts[:7]))
    cached, found = batch_loss(encoder, replace(settings, grad_cache=True), examples(real_texts[:7]))
    assert cached == pytest.approx(kept, rel=1e-5)
    size = max(grad.abs().max() for grad in expected.values())
    assert all((found[name] - grad).abs().max() < 2e-6 * size for name, grad in expected.items())


def test_the_loss_is_info_nce_of_the_encoders_own_vectors(encoder: Encoder, real_texts: list[str]) -> None:
    rows = examples(real_texts[:5])
    settings = replace(SMALL, negatives=2, max_length=None)
    queries = torch.tensor(encoder.encode([row.query for row in rows], instruction="find the rest"))
    negatives = [text for row in rows for text in row.negatives]
    documents = torch.tensor(encoder.encode([row.positive for row in rows] + negatives))
    found, _ = batch_loss(encoder, settings, rows)
    assert found == pytest.approx(info_nce(queries, documents, temperature=0.02).item(), rel=1e-4)


def test_instructions_stand_on_both_sides(encoder: Encoder, real_texts: list[str]) -> None:
    row = Example("a query", "a document", ("a negative",), "find", "summarise")
    rows = _Rows(encoder, [row], SMALL)
    assert rows.queries == encoder.tokenise(["a query"], "find")
    assert rows.documents == [encoder.tokenise(["a document", "a negative"], "summarise")]


def test_the_same_text_is_no_negative(encoder: Encoder) -> None:
    rows = [Example("q1", "same", ("n",)), Example("q2", "same", ("other",)), Example("q3", "own", ("same",))]
    pairs = _Rows(encoder, rows, SMALL).pairs([0, 1, 2])
    assert pairs.ignore.tolist() == [
        [True, True, False, False, False, True],
        [True, True, False, False, False, True],
        [False, False, True, False, False, False],
    ]


def test_more_negatives_than_wanted_are_drawn_anew_in_every_epoch(encoder: Encoder, real_texts: list[str]) -> None:
    rows = _Rows(encoder, examples(real_texts[:3], negatives=9), replace(SMALL, negatives=2))
    drawn = [rows._negatives(1, epoch) for epoch in range(12)]
    assert all(len(set(numbers)) == 2 for numbers in drawn)
    assert len({tuple(numbers) for numbers in drawn}) > 3
    assert drawn[5] == rows._negatives(1, 5)
    # Seen twice in one epoch, as where a source has weight 2: each time with negatives of its own.
    assert rows.pairs([1, 1], [0, 5]).documents[2:] == [
        rows.documents[1][1 + j] for n in (0, 5) for j in rows._negatives(1, n)
    ]
    none = _Rows(encoder, examples(real_texts[:3]), replace(SMALL, negatives=0)).pairs([0, 2])
    assert len(none.documents) == 2


def test_it_teaches_to_find_the_rest_of_other_texts(encoder: Encoder, real_texts: list[str]) -> None:
    settings = replace(SMALL, steps=16, batch_size=24, learning_rate=3e-3, tune="full", held_out_items=60, warm_up=0.1)
    supervised(encoder, examples(real_texts[:600], negatives=1), settings, show_progress=False)
    before, after = encoder.record.stages[-1]["held_out"].values()
    assert after["loss"] < before["loss"] - 0.2


def test_nothing_to_train_on_is_refused(encoder: Encoder) -> None:
    with pytest.raises(DataError, match="supervised: no item to train on"):
        supervised(encoder, [], SMALL)
