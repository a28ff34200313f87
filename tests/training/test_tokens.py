"""Property: the flat arrays hold what the lists held, whatever is left out, joined or cut."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bothways.data import Origin, Rows
from bothways.training.masking import to_blocks
from bothways.training.token_cache import in_memory
from bothways.training.tokens import Blocks, Tokens

BOS = 3
LISTS = st.lists(st.lists(st.integers(2, 6), min_size=1, max_size=9), max_size=12)


def as_ids(texts: Sequence[str]) -> list[list[int]]:
    return [[ord(letter) for letter in text] for text in texts]


def tokens_of(*sources: list[list[int]], weights: Sequence[float] = ()) -> Tokens:
    """One store per source; with `weights`, each source has its own."""
    texts = [["".join(map(chr, row)) for row in rows] for rows in sources]
    if not weights:
        return Tokens([store for part in texts for store in in_memory(part, as_ids)])
    origins = [Origin(str(i), weight, len(texts[i]), 0) for i, weight in enumerate(weights)]
    return Tokens(in_memory(Rows([text for part in texts for text in part], (), origins), as_ids))


@given(LISTS, LISTS)
def test_texts_are_found_by_their_numbers(first: list[list[int]], second: list[list[int]]) -> None:
    tokens, rows = tokens_of(first, [], second), first + second
    assert list(tokens) == rows
    assert len(tokens) == len(rows)
    assert tokens.lengths.tolist() == [len(row) for row in rows]
    assert tokens.tokens == sum(map(len, rows))
    with pytest.raises(IndexError):
        tokens[len(rows)]


@given(LISTS, LISTS, st.sets(st.integers(0, 23)), st.sets(st.integers(0, 23)))
def test_views_hold_what_is_left(
    first: list[list[int]], second: list[list[int]], once: set[int], again: set[int]
) -> None:
    rows = first + second
    dropped = np.array(sorted(i for i in once if i < len(rows)), np.int64)
    left = [row for i, row in enumerate(rows) if i not in once]
    view = tokens_of(first, second).without(dropped)
    assert list(view) == left
    assert view.lengths.tolist() == [len(row) for row in left]
    then = np.array(sorted(i for i in again if i < len(left)), np.int64)
    assert list(view.without(then)) == [row for i, row in enumerate(left) if i not in again]
    assert list(view.only(then)) == [left[i] for i in then]
    assert view.fingerprint() == tokens_of(left).fingerprint()
    assert view.hashes.tolist() == tokens_of(left).hashes.tolist()
    flat = [token for row in left for token in row]
    assert view.stream(0, len(flat) + 5).tolist() == flat
    assert view.stream(3, 8).tolist() == flat[3:8]


def test_equal_ids_are_equal_texts_and_no_others() -> None:
    hashes = tokens_of([[5, 6], [5], [6], [5, 6]]).hashes.tolist()
    assert hashes[0] == hashes[3]
    assert len(set(hashes)) == 3
    assert tokens_of([[5, 6], [2]]).fingerprint() != tokens_of([[2], [5, 6]]).fingerprint()


@pytest.mark.parametrize("first", [None, BOS])
@given(LISTS, LISTS, st.integers(2, 11), st.sets(st.integers(0, 23)))
def test_blocks_are_those_of_lists(
    first: int | None, some: list[list[int]], more: list[list[int]], size: int, dropped: set[int]
) -> None:
    some, more = ([[BOS, *row] for row in rows] if first else rows for rows in (some, more))
    rows = some + more
    left_out = np.array(sorted(i for i in dropped if i < len(rows)), np.int64)
    expected = to_blocks([row for i, row in enumerate(rows) if i not in dropped], size, first)
    blocks = Blocks(tokens_of(some, more).without(left_out), size, first)
    assert list(blocks) == expected
    assert len(blocks) == len(expected)
    assert blocks.lengths.tolist() == [len(block) for block in expected]


def test_blocks_of_a_stream_that_is_read_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bothways.training.tokens.TOKENS_AT_ONCE", 7)
    rows = [[BOS, *range(10, 10 + length)] for length in (3, 11, 1, 8, 5, 40, 2)]
    assert list(Blocks(tokens_of(rows), 5, BOS)) == to_blocks(rows, 5, BOS)


def test_blocks_and_texts_know_the_weights_of_their_sources() -> None:
    sources = [[[BOS, 7, 8]] * 5, [[BOS, 9]] * 4, [[BOS, 5, 5, 5]] * 3]
    tokens = tokens_of(*sources, weights=(1.0, 1.0, 0.5)).without(np.array([0]))
    assert tokens.weights == [(1.0, 8), (0.5, 3)]
    assert [(origin.name, origin.rows) for origin in tokens.origins] == [("0", 4), ("1", 4), ("2", 3)]
    blocks = Blocks(tokens, 6, BOS)
    alike, half = to_blocks(sources[0][1:] + sources[1], 6, BOS), to_blocks(sources[2], 6, BOS)
    assert list(blocks) == alike + half
    assert blocks.weights == [(1.0, len(alike)), (0.5, len(half))]


def test_the_opening_token_is_the_one_of_all_texts() -> None:
    assert tokens_of([[BOS, 4], [BOS]]).opens_with(BOS)
    assert not tokens_of([[BOS, 4], [4]]).opens_with(BOS)
    assert not tokens_of([[BOS, 4]], [[4]]).opens_with(BOS)
    assert not tokens_of([[BOS, 4]]).opens_with(None)
