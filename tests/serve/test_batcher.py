"""Property: the thread that owns the encoder: a text that fails takes nobody along, and a model that fails is seen."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, wait
from typing import Any

import numpy as np
import pytest
import torch

from bothways import Encoder
from bothways.encoding.reading import Item
from bothways.serve import Serve
from bothways.serve.batcher import Batcher, ComputeError
from bothways.serve.metrics import Metrics
from bothways.serve.queue import ClosedError, Job, Queue
from bothways.text import TextIds

POISON = 499
"""A token id on which the planted defect strikes."""


def items(encoder: Encoder, texts: list[str]) -> list[Item]:
    return [Item((row,)) for row in encoder.tokenise(texts)]


def job(*lengths: int) -> Job:
    return Job([Item((TextIds([5] * length, [True] * length),)) for length in lengths], 7)


@pytest.fixture
def defect(encoder: Encoder) -> Iterator[dict[str, Any]]:
    """What happens when the poison goes through the model."""
    planted: dict[str, Any] = {"act": None}

    def hook(_: Any, given: tuple[Any, ...], found: torch.Tensor) -> torch.Tensor | None:
        return planted["act"](found) if planted["act"] and (given[0] == POISON).any() else None

    handle = encoder.model.get_input_embeddings().register_forward_hook(hook)
    yield planted
    handle.remove()


def batched(encoder: Encoder, all_texts: list[list[Item]], **settings: Any) -> tuple[Batcher, list[Future[Any]]]:
    """Everything waits before the first batch is taken."""
    batcher = Batcher(encoder, Serve(**settings), Metrics())
    futures = [batcher.submit(one) for one in all_texts]
    batcher.start()
    wait(futures, timeout=60)
    return batcher, futures


def failures(batcher: Batcher) -> float:
    return batcher.metrics.registry.get_sample_value("bothways_batch_failures_total") or 0.0


def test_jobs_take_turns_within_the_tokens_of_a_batch() -> None:
    queue = Queue()
    large, small, long = job(3, 3, 3, 3, 3), job(2), job(11)
    for one in (large, small, long):
        queue.put(one)
    assert queue.waiting() == (7, 28)
    assert queue.take(8, 0) == [(large, 0), (small, 0)]
    # Longer than a batch: alone.
    assert queue.take(8, 0) == [(long, 0)]
    assert queue.take(8, 0) == [(large, 1), (large, 2)]
    assert queue.waiting() == (2, 6)
    large.future.cancel()
    assert queue.waiting() == (0, 0)
    other = job(1)
    queue.put(other)
    assert queue.take(8, 0) == [(other, 0)]
    queue.put(job(1))
    assert len(queue.close()) == 1
    assert len(queue.take(8, 0)) == 1
    assert queue.take(8, 0) == []
    with pytest.raises(ClosedError):
        queue.put(job(1))


def test_a_batch_waits_for_others_only_where_that_is_asked() -> None:
    from threading import Timer

    queue, first, second = Queue(), job(3), job(9)
    queue.put(first)
    timer = Timer(0.05, queue.put, [second])
    timer.start()
    assert queue.take(12, 30.0) == [(first, 0), (second, 0)]
    queue.put(first := job(3))
    assert queue.take(12, 0.01) == [(first, 0)]


def test_one_text_that_fails_fails_no_other_request(encoder: Encoder, defect: dict[str, Any]) -> None:
    def broken(_: torch.Tensor) -> torch.Tensor:
        raise ValueError("planted")

    defect["act"] = broken
    texts = [[f"text {number}", f"another {number}"] for number in range(9)]
    asked = [items(encoder, request) for request in texts]
    asked[4][1] = Item((TextIds([5, POISON, 6], [True] * 3),))
    batcher, futures = batched(encoder, asked)
    for number, (request, future) in enumerate(zip(texts, futures, strict=True)):
        if number == 4:
            with pytest.raises(ComputeError, match=r"the model fails on a text \(ValueError\)"):
                future.result()
        else:
            np.testing.assert_allclose(future.result(), encoder.encode(request), rtol=0, atol=1e-5)
    assert failures(batcher) > 1
    assert batcher.is_alive
    batcher.stop(30)
    assert not batcher.is_alive


def test_vectors_that_are_not_finite_are_not_given_out(encoder: Encoder, defect: dict[str, Any]) -> None:
    defect["act"] = lambda found: found * float("nan")
    asked = [[Item((TextIds([5, POISON], [True] * 2),))], items(encoder, ["a text"])]
    batcher, futures = batched(encoder, asked, tokens_per_batch=2)
    with pytest.raises(ComputeError, match=r"a vector that is not finite"):
        futures[0].result()
    np.testing.assert_allclose(futures[1].result(), encoder.encode(["a text"]), rtol=0, atol=1e-5)
    batcher.stop(30)


def test_a_model_that_computes_nothing_any_more_ends_it(
    encoder: Encoder, defect: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a GPU after an assertion: the text that was computed at the start fails too."""

    def lost(_: Any) -> Any:
        monkeypatch.setattr(Encoder, "token_states", lost_for_good)
        raise RuntimeError("planted")

    def lost_for_good(*_: Any) -> Any:
        raise RuntimeError("planted, for good")

    defect["act"] = lost
    batcher, futures = batched(encoder, [[Item((TextIds([POISON], [True]),))], items(encoder, ["a", "b", "c"])])
    assert all(future.exception() is not None for future in futures)
    batcher._thread.join(30)
    assert not batcher.is_alive
    with pytest.raises(ComputeError, match=r"the encoder has stopped"):
        batcher.submit(items(encoder, ["a text"]))


def test_where_memory_runs_out_less_is_computed_at_once(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Encoder.token_states

    def narrow(self: Encoder, rows: Any) -> torch.Tensor:
        if sum(map(len, rows)) > 40:
            raise torch.OutOfMemoryError("planted")
        return real(self, rows)

    texts = [f"some words of text {number}" for number in range(23)]
    expected = encoder.encode(texts)
    monkeypatch.setattr(Encoder, "token_states", narrow)
    batcher, futures = batched(encoder, [items(encoder, texts)])
    np.testing.assert_allclose(futures[0].result(), expected, rtol=0, atol=1e-5)
    assert failures(batcher) == 0
    batcher.stop(30)


def test_a_start_that_fails_says_why(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("planted")

    batcher = Batcher(encoder, Serve(), Metrics())
    monkeypatch.setattr(Encoder, "token_states", broken)
    with pytest.raises(RuntimeError, match="planted"):
        batcher.start()
