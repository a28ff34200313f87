"""What is asked of vectors (pieces, tokens, number formats, dimensions), what is computed once, what is refused."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bothways import Encoder, convert, hardware
from bothways.encoding import flow
from bothways.errors import ConfigError, DataError
from bothways.text import TextIds

CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def encoder(tiny_llama_folder: Path) -> Encoder:
    return convert(tiny_llama_folder, dtype="float32", device="cpu", max_length=40)


@pytest.mark.filterwarnings("ignore:.*(were cut|computed in pieces)")
@settings(max_examples=20, deadline=None)
@given(
    numbers=st.lists(st.integers(0, 39), min_size=1, max_size=25),
    tokens=st.one_of(st.none(), st.integers(1, 300)),
    window=st.integers(1, 9),
    overflow=st.sampled_from(["truncate", "chunk"]),
)
def test_windows_packs_and_copies_never_change_a_vector(
    encoder: Encoder, real_texts: Sequence[str], numbers: list[int], tokens: int | None, window: int, overflow: Any
) -> None:
    alone = {number: encoder.encode(real_texts[number], overflow=overflow) for number in numbers}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flow, "WINDOW", window)
        together = encoder.encode(
            [real_texts[number] for number in numbers], tokens_per_batch=tokens, overflow=overflow
        )
    np.testing.assert_allclose(together, [alone[number] for number in numbers], **CLOSE)


def test_equal_texts_are_computed_once(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = Encoder.token_states

    def token_states(self: Encoder, rows: Any) -> torch.Tensor:
        seen.append(len(rows))
        return real(self, rows)

    monkeypatch.setattr(Encoder, "token_states", token_states)
    texts = ["one", "two", "one", "three", "two", "one"]
    vectors = encoder.encode(texts)
    assert sum(seen) == 3
    np.testing.assert_array_equal(vectors[[0, 1, 0, 3, 1, 0]], vectors)
    seen.clear()
    # The same text with another instruction is another one.
    led = encoder.encode(["one", "one"], instruction=["Find it", None])
    assert sum(seen) == 2
    assert np.abs(led[0] - led[1]).max() > 1e-3


def test_texts_are_tokenised_behind_the_model(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[str] = set()
    real = Encoder.rows

    def rows(self: Encoder, *arguments: Any, **keywords: Any) -> list[TextIds]:
        threads.add(threading.current_thread().name)
        return real(self, *arguments, **keywords)

    monkeypatch.setattr(Encoder, "rows", rows)
    monkeypatch.setattr(flow, "WINDOW", 2)
    assert encoder.encode(["a", "b", "c", "d", "e"]).shape == (5, 56)
    assert all(name.startswith("ahead") for name in threads)


def test_packing_is_measured_once(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    from bothways.packing import rows

    counted: list[int] = []
    real = rows._flaw
    monkeypatch.setattr(rows, "_flaw", lambda model: counted.append(1) or real(model))
    fresh = Encoder(encoder.model, encoder.tokenizer, encoder.settings, encoder.record)
    before = fresh.model.config._attn_implementation
    first = fresh.encode(["a text", "another text"])
    np.testing.assert_array_equal(fresh.encode(["a text", "another text"]), first)
    assert len(counted) == 1
    assert fresh.model.config._attn_implementation == before


@pytest.mark.parametrize("pooling", ["mean", "weighted_mean", "last", "cls"])
def test_a_text_in_pieces_is_pooled_over_all_of_them(tiny_llama_folder: Path, pooling: str) -> None:
    encoder = convert(tiny_llama_folder, dtype="float32", device="cpu", max_length=12, pooling=pooling)
    text = "The quick brown fox, naïve as ever, jumps over 13 lazy dogs; 今日は good."
    pieces = encoder.pieces(text, ("", ""))
    assert len(pieces) > 2
    assert [start for start, _ in pieces] == sorted({start for start, _ in pieces})
    with torch.no_grad():
        states = torch.cat([encoder.token_states([row.ids]) for _, row in pieces])
        mask = torch.ones(1, len(states), dtype=torch.bool)
        expected = encoder.pooled(states[None], mask)[0].numpy()
    with pytest.warns(UserWarning, match=r"1 of 2 texts have more than max_length=12 tokens and were computed in pie"):
        vectors = encoder.encode([text, "short"], overflow="chunk")
    np.testing.assert_allclose(vectors[0], expected, **CLOSE)
    np.testing.assert_allclose(vectors[1], encoder.encode("short"), **CLOSE)


def test_pieces_put_together_are_the_text(encoder: Encoder, real_texts: Sequence[str]) -> None:
    draw = random.Random(3)
    for text in [*draw.sample(list(real_texts), 8), "x" * 3000, "見" * 500, "\U0001f469‍\U0001f4bb" * 90, " \n " * 70]:
        before = draw.choice(["", "Find the answer to it"])
        pieces = encoder.pieces(text, (before, ""))
        starts = [start for start, _ in pieces]
        bounds = itertools.pairwise([*starts, len(text)])
        assert "".join(text[start:end] for start, end in bounds) == text
        assert all(len(row) <= 40 and not row.cut for _, row in pieces)


def test_a_text_that_is_too_long_is_refused_by_its_number(encoder: Encoder) -> None:
    with pytest.raises(DataError, match=r"encode: texts\[2\] \(1,000 characters\) has more than max_length=40 tokens"):
        encoder.encode(["a", "b", "xyz. " * 200], overflow="error")


def test_token_vectors_stand_where_their_spans_say(encoder: Encoder) -> None:
    text = "Naïve tokens, 今日 too."
    for instruction in (None, "Find it"):
        found = encoder.encode([text, "other"], instruction=instruction, output="token")
        tokens = found[0]
        assert _left_out(text, tokens.spans) == ""
        assert tokens.vectors.shape == (len(tokens), 56)
        row = encoder.tokenise([text], instruction)[0]
        with torch.no_grad():
            states = encoder.token_states([row.ids]).numpy()
        np.testing.assert_allclose(tokens.vectors, states[-len(tokens) :], **CLOSE)
        assert tokens.ids == row.ids[-len(tokens) :]
    one = encoder.encode(text, output="token", truncate_dim=5)
    np.testing.assert_allclose(one.vectors, encoder.encode(text, output="token").vectors[:, :5], **CLOSE)
    assert len(encoder.encode("", output="token")) == 0


def test_spans_of_a_text_in_pieces_count_from_its_start(encoder: Encoder) -> None:
    text = "word " * 100
    with pytest.warns(UserWarning, match="in pieces"):
        tokens = encoder.encode(text, output="token", overflow="chunk")
    assert _left_out(text, tokens.spans) == ""
    assert [start for start, _ in tokens.spans] == sorted(start for start, _ in tokens.spans)


@pytest.mark.filterwarnings("ignore:.*were cut")
def test_number_formats_keep_who_is_near_whom(encoder: Encoder, real_texts: Sequence[str]) -> None:
    texts = list(real_texts[:30])
    full = encoder.encode(texts)
    formats = ("float16", "int8", "uint8", "binary", "ubinary")
    found = {name: encoder.encode(texts, precision=name) for name in formats}
    assert {name: (item.dtype.name, item.shape[1]) for name, item in found.items()} == {
        "float16": ("float16", 56),
        "int8": ("int8", 56),
        "uint8": ("uint8", 56),
        "binary": ("int8", 7),
        "ubinary": ("uint8", 7),
    }
    np.testing.assert_allclose(found["float16"].astype(np.float32), full, rtol=1e-3, atol=1e-4)
    whole = found["int8"].astype(np.float32)
    assert (np.abs(whole).max(axis=1) == 127).all()
    cosine = (whole * full).sum(axis=1) / np.linalg.norm(whole, axis=1)
    assert cosine.min() > 0.9995
    np.testing.assert_array_equal(found["uint8"].astype(int) - 128, found["int8"])
    np.testing.assert_array_equal(np.unpackbits(found["ubinary"], axis=1), full > 0)
    np.testing.assert_array_equal(found["binary"].astype(int) + 128, found["ubinary"])


def test_binary_is_what_sentence_transformers_makes_of_the_vectors(encoder: Encoder) -> None:
    quantize = pytest.importorskip("sentence_transformers.quantization").quantize_embeddings
    texts = ["a text", "another", "and a third one"]
    for precision in ("binary", "ubinary"):
        np.testing.assert_array_equal(
            encoder.encode(texts, precision=precision), quantize(encoder.encode(texts), precision=precision)
        )


def test_fewer_dimensions_are_the_first_ones_of_unit_length(encoder: Encoder) -> None:
    texts = ["a text", "another"]
    short, full = encoder.encode(texts, truncate_dim=10), encoder.encode(texts)
    np.testing.assert_allclose(short, full[:, :10] / np.linalg.norm(full[:, :10], axis=1, keepdims=True), **CLOSE)
    for wrong in (0, 57):
        with pytest.raises(ConfigError, match=f"truncate_dim={wrong}, but the encoder's vectors have 56 numbers"):
            encoder.encode(texts, truncate_dim=wrong)


def test_tensors_on_the_device(encoder: Encoder) -> None:
    vectors = encoder.encode(["a", "b"], as_tensor=True)
    assert vectors.device == encoder.device
    np.testing.assert_array_equal(vectors.numpy(), encoder.encode(["a", "b"]))
    assert isinstance(encoder.encode(["a"], output="token", as_tensor=True)[0].vectors, torch.Tensor)


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_asked_names_the_way_out(encoder: Encoder) -> None:
    for asked, message in (
        ({"precision": "int4"}, r'precision="int4" is not known. Did you mean "int8"\?'),
        ({"output": "word"}, 'encode: output="word", expected one of "text", "token"'),
        ({"overflow": "drop"}, 'encode: overflow="drop", expected one of "truncate", "chunk", "error"'),
        ({"tokens_per_batch": 0}, "encode: tokens_per_batch=0, expected 1 or more"),
        ({"truncate_dims": 8}, r'encode: unknown argument "truncate_dims". Did you mean "truncate_dim"\?'),
    ):
        with pytest.raises(ConfigError, match=message):
            encoder.encode(["a"], **asked)  # type: ignore[arg-type]


def test_memory_that_runs_out_halves_what_is_computed_at_once(
    encoder: Encoder, real_texts: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [text[:60] for text in real_texts[:24]]
    expected = encoder.encode(texts)
    real = Encoder.token_states

    def token_states(self: Encoder, rows: Any) -> torch.Tensor:
        if sum(map(len, rows)) > 100:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return real(self, rows)

    monkeypatch.setattr(Encoder, "token_states", token_states)
    np.testing.assert_allclose(encoder.encode(texts), expected, **CLOSE)


@pytest.mark.parametrize(("allowed", "chosen"), [(0.99, torch.bfloat16), (1.01, torch.float32)])
def test_an_automatic_number_format_says_what_it_does_to_the_vectors(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: float, chosen: torch.dtype
) -> None:
    encoder.save_pretrained(tmp_path / "encoder")
    monkeypatch.setattr(hardware, "cpu_flags", lambda: frozenset({"avx512_bf16"}))
    monkeypatch.setattr("bothways.encoder.FAITHFUL", allowed)
    opened = Encoder.from_pretrained(tmp_path / "encoder", dtype="auto", device="cpu")
    assert opened.dtype == chosen
    assert opened.dtype_choice is not None
    assert "cosine to float32 0.99" in opened.dtype_choice.why or "cosine to float32 1.00" in opened.dtype_choice.why


def _left_out(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """The characters that no token holds, but for white space."""
    held = {place for start, end in spans for place in range(start, end)}
    return "".join(letter for place, letter in enumerate(text) if place not in held).strip()
