"""Masking: the same draw everywhere, the rates it promises, and nothing that must stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from bothways.errors import ConfigError
from bothways.training.masking import NOT_PREDICTED, Masking, choose_mask_token, to_blocks
from bothways.training.words import Words

VOCAB, MASK, SPECIAL = 1009, 7, frozenset({0, 1})
BERT = Masking(scheme="bert", mask_id=MASK, vocab=VOCAB, special=SPECIAL)
ALL = Masking(scheme="all", mask_id=MASK, vocab=VOCAB, special=SPECIAL)


def long_row() -> list[int]:
    return np.random.default_rng(5).integers(10, VOCAB, size=40_000).tolist()


def test_rates_are_as_promised() -> None:
    row = long_row()
    ids, labels = (np.array(part) for part in BERT(row, (3, 1, 2), 0.2))
    hidden = labels != NOT_PREDICTED
    assert hidden.mean() == pytest.approx(0.2, abs=0.01)
    assert (labels[hidden] == np.array(row)[hidden]).all()
    assert (ids[~hidden] == np.array(row)[~hidden]).all()
    assert (ids[hidden] == MASK).mean() == pytest.approx(0.8, abs=0.02)
    assert (ids[hidden] == labels[hidden]).mean() == pytest.approx(0.1, abs=0.015)


def test_all_means_all() -> None:
    ids, labels = (np.array(part) for part in ALL(long_row(), (3,), 0.2))
    assert (ids[labels != NOT_PREDICTED] == MASK).all()


@given(st.lists(st.integers(0, VOCAB - 1), max_size=40), st.integers(0, 9), st.integers(0, 9))
def test_position_zero_and_specials_stay(row: list[int], epoch: int, number: int) -> None:
    ids, labels = BERT(row, (0, epoch, number), 0.2)
    assert len(ids) == len(labels) == len(row)
    for position, (before, after, label) in enumerate(zip(row, ids, labels, strict=True)):
        if position == 0 or before in SPECIAL:
            assert after == before
            assert label == NOT_PREDICTED
    eligible = any(token not in SPECIAL for token in row[1:])
    assert eligible == any(label != NOT_PREDICTED for label in labels)


def test_the_draw_depends_on_seed_epoch_row_and_rate_alone() -> None:
    row = long_row()[:211]
    first = drawn(BERT, row, (1, 2, 3), 0.2)
    np.random.seed(99)
    assert drawn(BERT, row, (1, 2, 3), 0.2) == first
    assert all(drawn(BERT, row, other, 0.2) != first for other in [(0, 2, 3), (1, 0, 3), (1, 2, 0)])
    assert drawn(BERT, row, (1, 2, 3), None) == drawn(BERT, row, (1, 2, 3), None) != first


def drawn(masking: Masking, row: list[int], seed: Sequence[int], rate: float | None) -> tuple[list[int], list[int]]:
    ids, labels = masking(row, seed, rate)
    return ids.tolist(), labels.tolist()


def test_what_a_low_rate_hides_a_higher_one_hides_too() -> None:
    low, high = (ALL(long_row(), (3,), rate)[1] != NOT_PREDICTED for rate in (0.15, 0.4))
    assert (high | ~low).all()
    assert high.mean() == pytest.approx(0.4, abs=0.01)


def test_rates_of_rows_are_uniform() -> None:
    row = long_row()[:1501]
    rates = [(ALL(row, (3, 0, number), None)[1] != NOT_PREDICTED).mean() for number in range(400)]
    # Of U(0, 1): mean 1/2 and deviation 0.289, each within four standard errors.
    assert np.mean(rates) == pytest.approx(0.5, abs=0.06)
    assert np.std(rates) == pytest.approx(0.289, abs=0.03)
    assert min(rates) < 0.02
    assert max(rates) > 0.98


def test_whole_words_are_hidden_in_the_share_that_is_asked_for() -> None:
    """Ids below 500 go on with a word; the rate is that of tokens, though long words are hidden at once."""
    inside = np.arange(VOCAB) < 500
    masking = replace(ALL, words=Words(goes_on=inside, ends_open=np.ones(VOCAB, bool), cut=np.zeros(VOCAB, bool)))
    row = np.array(long_row())
    hidden = masking(row, (3,), 0.3)[1] != NOT_PREDICTED
    assert hidden[1:].mean() == pytest.approx(0.3, abs=0.012)
    word = np.cumsum(~inside[row])
    same = word[2:] == word[1:-1]
    assert (hidden[2:] == hidden[1:-1])[same].all()
    assert (hidden[2:] != hidden[1:-1])[~same].mean() == pytest.approx(2 * 0.3 * 0.7, abs=0.02)


@given(st.lists(st.integers(0, VOCAB - 1), max_size=40), st.integers(0, 9))
def test_a_word_that_position_zero_cuts_is_whole_from_there_on(row: list[int], number: int) -> None:
    everything = Words(goes_on=np.ones(VOCAB, bool), ends_open=np.ones(VOCAB, bool), cut=np.zeros(VOCAB, bool))
    _, labels = replace(BERT, words=everything)(row, (0, 1, number), 0.01)
    assert [label != NOT_PREDICTED for label in labels] == [
        place > 0 and token not in SPECIAL for place, token in enumerate(row)
    ]


def test_blocks_are_full_and_open_as_texts_do() -> None:
    rows = [[0, *range(10, 10 + length)] for length in (3, 11, 1, 8, 5)]
    blocks = to_blocks(rows, 7, first=0)
    assert all(len(block) == 7 and block[0] == 0 for block in blocks)
    without = [token for block in blocks for token in block if token]
    assert without == [token for row in rows for token in row if token][: len(without)]
    assert len(without) > 28 - 7


def test_blocks_without_an_opening_token_are_a_plain_cut() -> None:
    rows = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
    assert to_blocks(rows, 4, first=None) == [[5, 6, 7, 8], [9, 10, 11, 12]]


def test_too_little_for_a_block_is_one_short_block() -> None:
    assert to_blocks([[0, 5], [0, 6]], 9, first=0) == [[0, 5, 0, 6]]
    assert to_blocks([], 9, first=0) == []


def test_the_mask_token_and_its_fallbacks(tiny_llama_folder: Path, tiny_untied_folder: Path) -> None:
    usual = AutoTokenizer.from_pretrained(tiny_llama_folder)
    before = usual.backend_tokenizer.to_str()
    assert choose_mask_token(usual).token == "_"
    other = AutoTokenizer.from_pretrained(tiny_untied_folder)
    fallback = choose_mask_token(other)
    assert (fallback.token, fallback.id) == ("<unk>", other.unk_token_id)
    assert "this is its unk token" in fallback.why
    other.unk_token = None
    last = choose_mask_token(other)
    assert last.id == max(i for i in other.get_vocab().values() if i not in other.all_special_ids)
    assert usual.backend_tokenizer.to_str() == before


def test_a_mask_token_can_be_asked_for(tiny_llama_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_folder)
    token = tokenizer.convert_ids_to_tokens(17)
    assert choose_mask_token(tokenizer, 17).token == token
    assert choose_mask_token(tokenizer, token).id == 17
    with pytest.raises(ConfigError, match=r"mask_token='<nope>'.: not one token of this vocabulary"):
        choose_mask_token(tokenizer, "<nope>")
    with pytest.raises(ConfigError, match="expected an id below the vocabulary's 501"):
        choose_mask_token(tokenizer, 501)
