"""Batches: every item once an epoch, the same at every call, never mixing what belongs together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bothways.training.batches import Order, Share, same_meaning, split_held_out


@given(st.integers(1, 60), st.integers(1, 13), st.integers(0, 5))
def test_an_epoch_holds_every_item_at_most_once(count: int, size: int, seed: int) -> None:
    order = Order([Share(count)], size, seed)
    for epoch in (0, 3):
        batches = [order.batch(epoch * order.per_epoch + number) for number in range(order.per_epoch)]
        seen = [item for batch in batches for item in batch.items]
        assert {batch.epoch for batch in batches} == {epoch}
        assert len(seen) == len(set(seen)) > count - size
        assert set(seen) <= set(range(count))
        assert {visit for batch in batches for visit in batch.visits} == {epoch}


def test_a_batch_does_not_depend_on_the_batches_before() -> None:
    walked = Order([Share(53)], 7, seed=4)
    all_at_once = [walked.batch(step).items for step in range(30)]
    assert [Order([Share(53)], 7, seed=4).batch(step).items for step in (29, 0, 13)] == [
        all_at_once[i] for i in (29, 0, 13)
    ]
    assert all_at_once[0] != Order([Share(53)], 7, seed=5).batch(0).items
    assert all_at_once[:7] != all_at_once[7:14]


@pytest.mark.parametrize(("weight", "seen"), [(2.0, 14), (0.5, 4), (1.0, 7), (3.3, 23), (0.01, 1)])
def test_a_weight_says_how_often_an_item_is_seen_in_an_epoch(weight: float, seen: int) -> None:
    order = Order([Share(10), Share(7, weight), Share(0, 2.0)], 1, seed=3)
    assert order.per_epoch == 10 + seen
    walked = [(batch.items[0], batch.visits[0], batch.epoch) for batch in map(order.batch, range(21 * (10 + seen)))]
    for epoch in range(21):
        items = [item for item, _, when in walked if when == epoch]
        assert sorted(item for item in items if item < 10) == list(range(10))
        counts = np.bincount([item - 10 for item in items if item >= 10], minlength=7)
        # A round through the share may end within an epoch; the next one may begin with an item of this epoch.
        assert np.ptp(counts) <= (1 if weight == int(weight) else 2)
    weighted = [(item, visit) for item, visit, _ in walked if item >= 10]
    assert len(weighted) == len(set(weighted)) == 21 * seen
    rounds = np.bincount([visit for _, visit in weighted])
    assert set(rounds[:-1].tolist()) <= {7}


def test_half_of_the_items_are_others_in_the_next_epoch() -> None:
    order = Order([Share(8, 0.5)], 4, seed=1)
    first, second = (set(order.batch(step).items) for step in (0, 1))
    assert first | second == set(range(8))


def test_a_weighted_batch_does_not_depend_on_the_batches_before() -> None:
    items = [Share(11, 0.7), Share(5, 2.0)]
    walked = Order(items, 3, seed=4)
    all_at_once = [walked.batch(step) for step in range(30)]
    assert [Order(items, 3, seed=4).batch(step) for step in (29, 0, 13)] == [all_at_once[i] for i in (29, 0, 13)]
    assert walked.count == 16


@given(st.lists(st.sampled_from("abcdefghijklmnopqrstuvwxyz"), max_size=80), st.integers(0, 9), st.integers(0, 3))
def test_nothing_held_out_is_trained_on(keys: list[str], most: int, seed: int) -> None:
    held_out, left_out = (part.tolist() for part in split_held_out(keys, most, seed))
    assert len(held_out) == min(most, len(keys) // 10)
    assert left_out == [i for i, key in enumerate(keys) if key in {keys[j] for j in held_out}]
    assert [held_out, left_out] == [part.tolist() for part in split_held_out(keys, most, seed)]
    numbers = np.array([ord(key) for key in keys], np.uint64)
    assert [held_out, left_out] == [part.tolist() for part in split_held_out(numbers, most, seed)]


def test_documents_that_say_the_same_are_no_negatives() -> None:
    queries = ["q1", "q2", "q1"]
    documents = ["a", "b", "c", "a", "d"]
    assert same_meaning(queries, documents).tolist() == [
        [True, False, True, True, False],
        [False, True, False, False, False],
        [True, False, True, True, False],
    ]
