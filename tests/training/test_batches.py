"""Batches: every item once an epoch, the same at every call, never mixing what belongs together."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bothways.training.batches import (
    Batch,
    LeftOut,
    Order,
    Share,
    _apart,
    balanced,
    numbered,
    same_meaning,
    split_held_out,
)

SHARES = st.lists(st.tuples(st.integers(0, 30), st.sampled_from([0.3, 1.0, 2.5])), min_size=1, max_size=5).filter(
    lambda shares: any(count for count, _ in shares)
)


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


def epoch_of(order: Order, epoch: int) -> list[Batch]:
    return [order.batch(epoch * order.per_epoch + number) for number in range(order.per_epoch)]


def random_texts(count: int, kinds: int, seed: int) -> np.ndarray:
    """Two texts for each item, of so many different ones."""
    return np.random.default_rng(seed).integers(0, kinds, (count, 2))


@given(SHARES, st.integers(1, 9), st.integers(0, 3), st.booleans())
def test_a_batch_apart_is_of_one_share(shares: list, size: int, seed: int, texts: bool) -> None:
    items = [Share(count, weight) for count, weight in shares]
    count = sum(share.count for share in items)
    order = Order(items, size, seed, apart=True, texts=random_texts(count, 7, seed) if texts else None)
    owner = np.repeat(np.arange(len(items)), [share.count for share in items])
    for epoch in (0, 2):
        batches = epoch_of(order, epoch)
        assert all(set(owner[batch.items]) == {batch.share} for batch in batches)
        found = Counter(batch.share for batch in batches)
        for number, share in enumerate(items):
            seen = max(1, round(share.weight * share.count)) if share.count else 0
            most = min(size, seen, share.count) if texts else min(size, seen)
            assert found[number] == (seen // most if seen else 0)
            sizes = [len(batch.items) for batch in batches if batch.share == number]
            assert all(0 < len_ <= most for len_ in sizes)
            left = order.left_out(epoch).get(number, LeftOut(0, 0))
            assert sum(sizes) + left.few + left.twice == seen
            assert texts or set(sizes) <= {most}


@given(st.integers(1, 90), st.integers(1, 60), st.integers(1, 13), st.integers(0, 3), st.booleans())
def test_no_batch_has_a_text_twice(count: int, kinds: int, size: int, seed: int, apart: bool) -> None:
    texts = random_texts(count, kinds, seed)
    shares = [Share(count // 3, 2.0), Share(count - count // 3)]
    order = Order(shares, size, seed, apart=apart, texts=texts)
    for epoch in (0, 1):
        for batch in epoch_of(order, epoch):
            assert batch.items
            own = [text for item in batch.items for text in set(texts[item].tolist())]
            assert len(own) == len(set(own))


def test_an_item_that_must_wait_comes_into_a_later_batch() -> None:
    texts = np.array([[0, 1], [0, 2], [3, 4], [5, 1], [6, 7]])
    # The second and the fourth have a text of the first; then both batches are full.
    assert _apart(texts, 2, 2).tolist() == [0, 1, 0, 1, 2]
    # A query that is another item's positive is the same text; a query that is its own positive is no other's.
    assert _apart(np.array([[0, 1], [2, 0], [3, 3]]), 2, 2).tolist() == [0, 1, 0]
    assert _apart(np.array([[0, -1], [-1, -1], [-1, 0]]), 2, 2).tolist() == [0, 0, 1]
    assert _apart(np.full((3, 2), -1), 2, 2) is None


@pytest.mark.parametrize("apart", [True, False])
def test_a_few_texts_that_repeat_cost_no_place(apart: bool) -> None:
    texts = np.arange(400).reshape(200, 2)
    texts[[3, 50, 51, 120, 190], 0] = 0
    order = Order([Share(90), Share(110)], 16, 0, apart=apart, texts=texts)
    for epoch in range(5):
        assert {len(batch.items) for batch in epoch_of(order, epoch)} == {16}
        assert all(left.twice == 0 for left in order.left_out(epoch).values())


def test_every_item_is_seen_even_of_small_shares_and_of_texts_that_repeat() -> None:
    texts = np.concatenate([random_texts(40, 9, 0), 9 + random_texts(3, 2, 0), np.arange(100, 200).reshape(50, 2)])
    order = Order([Share(40), Share(3), Share(50, 0.2)], 16, 0, apart=True, texts=texts)
    assert order.smaller() == {1: 3, 2: 10}
    seen = Counter(item for epoch in range(60) for batch in epoch_of(order, epoch) for item in batch.items)
    assert set(seen) == set(range(93))


def test_a_small_share_of_weight_3_makes_three_batches() -> None:
    order = Order([Share(5, 3.0), Share(40)], 20, 0, apart=True, texts=np.arange(90).reshape(45, 2))
    batches = [batch for batch in epoch_of(order, 0) if batch.share == 0]
    assert [sorted(batch.items) for batch in batches] == [[0, 1, 2, 3, 4]] * 3
    assert [batch.visits for batch in batches] == [[0] * 5, [1] * 5, [2] * 5]


@pytest.mark.parametrize("exponent", [1.0, 0.5, 0.0])
def test_steps_are_shared_out_by_weight_and_size(exponent: float) -> None:
    shares = [Share(6400), Share(1600, 2.0), Share(0), Share(400)]
    order = Order(balanced(shares, exponent), 10, 0, apart=True)
    found = Counter(batch.share for batch in epoch_of(order, 0))
    expected = {1.0: [640, 320, 40], 0.5: [444, 444, 111], 0.0: [250, 500, 250]}[exponent]
    assert [found[share] for share in (0, 1, 3)] == expected
    # They come in no order: each tenth of an epoch has about a tenth of each share's steps.
    tenth = Counter(order.batch(step).share for step in range(order.per_epoch // 10))
    assert all(found[share] / 20 < tenth[share] < found[share] / 5 for share in (0, 1))


def test_by_size_every_weight_stays_what_it_is() -> None:
    shares = (Share(7, 0.3), Share(0, 2.0), Share(3_000_001, 1.7), Share(11))
    assert balanced(shares, 1.0) == shares
    assert balanced((), 0.5) == ()


@given(st.integers(0, 200), st.booleans())
def test_the_batch_of_a_step_is_a_function_of_seed_and_step(step: int, apart: bool) -> None:
    def order(seed: int = 3) -> Order:
        shares = [Share(31), Share(0), Share(17, 1.4), Share(4)]
        return Order(shares, 6, seed, apart=apart, texts=random_texts(52, 40, 1))

    walked = order()
    walk = [walked.batch(number) for number in range(step + 1)]
    assert order().batch(step) == walk[-1]
    other = order(4)
    assert [batch.items for batch in epoch_of(other, 0)] != [batch.items for batch in epoch_of(walked, 0)]
    shares = [[batch.share for batch in epoch_of(walked, epoch)] for epoch in range(3)]
    assert (shares[0] != shares[1] or shares[1] != shares[2]) == apart


def test_another_process_makes_the_same_batches() -> None:
    script = (
        "from bothways.training.batches import *\n"
        "texts = numbered(str(i * i % 31) for i in range(120)).reshape(-1, 2)\n"
        "order = Order([Share(40), Share(20)], 6, 1, apart=True, texts=texts)\n"
        "print([order.batch(step) for step in range(25)])"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
    assert "share=1" in found.pop()


def test_equal_keys_have_one_number() -> None:
    assert numbered(["b", "a", "b", "", "a"]).tolist() == [0, 1, 0, 2, 1]


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
