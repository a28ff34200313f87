"""Property and contract: batching, order and padding never change a vector; every odd input has a defined result."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from bothways import Encoder, convert
from bothways.errors import ConfigError, DataError
from bothways.text import TextIds, collate


@pytest.fixture(scope="module")
def encoder(tiny_llama_folder: Path) -> Encoder:
    return convert(tiny_llama_folder)


# Some of the texts are longer than the model reads; they are cut alike in every batch.
@pytest.mark.filterwarnings("ignore:.*were cut")
@settings(max_examples=15, deadline=None)
@given(
    numbers=st.lists(st.integers(0, 39), min_size=2, max_size=7),
    order=st.randoms(use_true_random=False),
    tokens=st.integers(1, 700),
)
def test_batching_and_order_never_change_a_vector(
    encoder: Encoder, real_texts: Sequence[str], numbers: list[int], order: random.Random, tokens: int
) -> None:
    alone = {number: encoder.encode(real_texts[number]) for number in numbers}
    shuffled = order.sample(numbers, len(numbers))
    together = encoder.encode([real_texts[number] for number in shuffled], tokens_per_batch=tokens)
    np.testing.assert_allclose(together, np.stack([alone[number] for number in shuffled]), rtol=0, atol=1e-5)


def test_padding_side_never_changes_a_vector(encoder: Encoder) -> None:
    rows = encoder.tokenise(["a short text", "a text that is a good deal longer than the other one"])
    right = collate(rows, pad_id=1)
    widest = right.input_ids.shape[1]
    left = [torch.full((2, widest), 1), torch.zeros((2, widest), dtype=torch.bool)]
    for number, row in enumerate(rows):
        left[0][number, widest - len(row) :] = torch.tensor(row.ids)
        left[1][number, widest - len(row) :] = True
    with torch.no_grad():
        vectors = encoder({"input_ids": left[0], "attention_mask": left[1]})
    np.testing.assert_allclose(vectors.numpy(), encoder(right).detach().numpy(), rtol=0, atol=1e-5)


def test_every_token_matters_to_every_other(encoder: Encoder) -> None:
    ids = encoder.tokenise(["one two three four five"])[0].ids
    changed = [*ids[:-1], ids[-1] + 1]
    with torch.no_grad():
        first, second = (encoder.hidden_states(encoder.collate([TextIds(i, [True] * len(i))])) for i in (ids, changed))
    assert ((first - second).abs().amax(dim=-1)[0] > 1e-4).all()


def test_shapes_dtype_and_length(encoder: Encoder) -> None:
    assert encoder.encode("hello").shape == (56,)
    assert encoder.encode(["hello"]).shape == (1, 56)
    assert encoder.encode([]).shape == (0, 56)
    assert encoder.encode_query([]).shape == (0, 56)
    assert encoder([]).shape == (0, 56)
    vectors = encoder.encode(["hello", "a longer text"])
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_an_empty_text_has_the_vector_of_its_special_token(encoder: Encoder) -> None:
    bos = encoder.tokenizer.bos_token_id
    with torch.no_grad():
        expected = encoder(encoder.collate([TextIds([bos], [True])]))[0].numpy()
    np.testing.assert_allclose(encoder.encode(""), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(encoder.encode(["a much longer text", ""])[1], expected, rtol=0, atol=1e-5)


def test_a_text_beyond_max_length_is_cut_with_a_count(encoder: Encoder) -> None:
    long = "every word counts " * 200
    with pytest.warns(UserWarning, match=r"1 of 2 texts have more than max_length=256 tokens and were cut"):
        vectors = encoder.encode([long, "short"])
    with pytest.warns(UserWarning, match="were cut"):
        np.testing.assert_allclose(encoder.encode(long + "and more"), vectors[0], rtol=0, atol=1e-5)


def test_ten_thousand_characters_without_a_space(encoder: Encoder) -> None:
    with pytest.warns(UserWarning, match="were cut"):
        first, second = encoder.encode(["x" * 10_000, "見" * 10_000])
    assert np.isfinite(first).all()
    assert np.abs(first - second).max() > 1e-3


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_text_is_named(encoder: Encoder) -> None:
    with pytest.raises(DataError, match=r"encode: texts\[1\] is NoneType \(None\), expected str"):
        encoder.encode(["a", None])
    with pytest.raises(DataError, match="2 instructions for 1 texts"):
        encoder.encode(["a"], instruction=["b", "c"])
    with pytest.raises(ConfigError, match="tokens_per_batch=0"):
        encoder.encode(["a"], tokens_per_batch=0)


def test_one_instruction_for_all_or_one_for_each(encoder: Encoder) -> None:
    texts = ["first text", "second text", "third text"]
    each = encoder.encode(texts, instruction=["Find it", None, "Find it"])
    np.testing.assert_allclose(each[[0, 2]], encoder.encode(texts, instruction="Find it")[[0, 2]], rtol=0, atol=1e-5)
    np.testing.assert_allclose(each[1], encoder.encode("second text"), rtol=0, atol=1e-5)
    np.testing.assert_allclose(each[0], encoder.encode("Find it first text"), rtol=0, atol=1e-5)


def test_stored_prompts_serve_queries_and_documents(tiny_llama_folder: Path) -> None:
    encoder = convert(tiny_llama_folder, prompts={"query": "Question: "})
    np.testing.assert_allclose(encoder.encode_query("why"), encoder.encode("Question: why"), rtol=0, atol=1e-6)
    np.testing.assert_allclose(encoder.encode_document("why"), encoder.encode("why"), rtol=0, atol=1e-6)


def test_forward_has_gradients_and_equals_encode(encoder: Encoder) -> None:
    texts = ["a text", "another one"]
    vectors = encoder(texts)
    np.testing.assert_allclose(vectors.detach().numpy(), encoder.encode(texts), rtol=0, atol=1e-5)
    vectors[:, 0].sum().backward()
    gradients = [parameter.grad for parameter in encoder.model.layers.parameters()]
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)
    encoder.zero_grad()


@pytest.mark.usefixtures("unchecked")
def test_settings_are_checked(tiny_llama_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r'unknown setting "poolin". Did you mean "pooling"\?'):
        convert(tiny_llama_folder, poolin="mean")
    with pytest.raises(ConfigError, match=r"max_length=300, but the model reads at most 256 tokens"):
        convert(tiny_llama_folder, max_length=300)
    with pytest.raises(ConfigError, match='pooling="max" is not known'):
        convert(tiny_llama_folder, pooling="max")
    with pytest.raises(ConfigError, match='dtype="float31" is not known'):
        convert(tiny_llama_folder, dtype="float31")


def test_bfloat16_stays_near_float32(tiny_llama_folder: Path, encoder: Encoder) -> None:
    half = convert(tiny_llama_folder, dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    cosine = (half.encode(["some text here"]) * encoder.encode(["some text here"])).sum()
    assert 0.99 < cosine < 0.999999


def test_a_classifier_and_a_token_classifier_train_on_a_converted_encoder(tiny_llama_folder: Path) -> None:
    """The example of docs/downstream.md: heads of one's own on `forward` and `hidden_states`, the conversion kept."""
    encoder = convert(tiny_llama_folder)
    texts, labels = ["open a file", "read the file", "sum of numbers", "add two numbers"], torch.tensor([0, 0, 1, 1])
    features = encoder.collate(encoder.tokenise(texts))
    first_letter_a = torch.tensor(
        [["a" in encoder.tokenizer.decode([token]) for token in row] for row in features.input_ids.tolist()]
    ).long()
    classifier, tagger = nn.Linear(encoder.dim, 2), nn.Linear(encoder.dim, 2)
    optimiser = torch.optim.AdamW([*encoder.parameters(), *classifier.parameters(), *tagger.parameters()], lr=3e-3)
    losses = []
    for _ in range(25):
        tokens = tagger(encoder.hidden_states(features))[features.attention_mask]
        loss = F.cross_entropy(classifier(encoder(features)), labels)
        loss = loss + F.cross_entropy(tokens, first_letter_a[features.attention_mask])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    from bothways.bidirectional.probe import probe

    probe(encoder.model).require_bidirectional()
