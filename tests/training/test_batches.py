"""Batches: every item once an epoch, the same at every call, never mixing what belongs together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bothways.training.batches import Order, same_meaning, split_held_out


@given(st.integers(1, 60), st.integers(1, 13), st.integers(0, 5))
def test_an_epoch_holds_every_item_at_most_once(count: int, size: int, seed: int) -> None:
    order = Order(count, size, seed)
    for epoch in (0, 3):
        batches = [order.batch(epoch * order.per_epoch + number) for number in range(order.per_epoch)]
        seen = [item for batch in batches for item in batch.items]
        assert {batch.epoch for batch in batches} == {epoch}
        assert len(seen) == len(set(seen)) > count - size
        assert set(seen) <= set(range(count))


def test_a_batch_does_not_depend_on_the_batches_before() -> None:
    walked = Order(53, 7, seed=4)
    all_at_once = [walked.batch(step).items for step in range(30)]
    assert [Order(53, 7, seed=4).batch(step).items for step in (29, 0, 13)] == [all_at_once[i] for i in (29, 0, 13)]
    assert all_at_once[0] != Order(53, 7, seed=5).batch(0).items
    assert all_at_once[:7] != all_at_once[7:14]


@given(st.lists(st.sampled_from("abcdefghijklmnopqrstuvwxyz"), max_size=80), st.integers(0, 9), st.integers(0, 3))
def test_nothing_held_out_is_trained_on(keys: list[str], most: int, seed: int) -> None:
    training, held_out = split_held_out(keys, most, seed)
    assert len(held_out) == min(most, len(keys) // 10)
    assert not {keys[i] for i in training} & {keys[i] for i in held_out}
    assert (training, held_out) == split_held_out(keys, most, seed)


def test_documents_that_say_the_same_are_no_negatives() -> None:
    queries = ["q1", "q2", "q1"]
    documents = ["a", "b", "c", "a", "d"]
    assert same_meaning(queries, documents).tolist() == [
        [True, False, True, True, False],
        [False, True, False, False, False],
        [True, False, True, True, False],
    ]
