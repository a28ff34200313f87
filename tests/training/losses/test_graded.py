"""Losses of graded pairs against plain loops (property), and sentence-transformers' CoSENT (parity)."""

from __future__ import annotations

import math

import pytest
import torch
from beside import assert_same_value_and_gradient, cosine, leaf, theirs
from sentence_transformers.sentence_transformer import losses as peers
from torch import Tensor

from bothways.training.losses import bixse, cosent

GRADES = torch.tensor([0.2, 0.9, 0.2, 0.5, 1.0, 0.0, 0.5])
"""Of 7 pairs, with ties."""


def naive_cosent(left: Tensor, right: Tensor, scores: Tensor, temperature: float) -> float:
    cosines = [cosine(one, other) / temperature for one, other in zip(left, right, strict=True)]
    total = 1.0
    for i, better in enumerate(scores):
        for j, worse in enumerate(scores):
            if better > worse:
                total += math.exp(cosines[j] - cosines[i])
    return math.log(total)


def naive_bixse(
    queries: Tensor, documents: Tensor, scores: Tensor, temperature: float, bias: float, ignore: Tensor
) -> float:
    total = 0.0
    for i, query in enumerate(queries):
        for j, document in enumerate(documents):
            if i != j and ignore[i, j]:
                continue
            label = float(scores[i]) if i == j else 0.0
            probability = 1 / (1 + math.exp(-cosine(query, document) / temperature - bias))
            total -= label * math.log(probability) + (1 - label) * math.log(1 - probability)
    return total / len(queries)


def test_cosent_is_the_naive_sum() -> None:
    left, right = leaf(7, 3), leaf(7, 3)
    found = cosent(left, right, GRADES, temperature=0.3)
    assert found.item() == pytest.approx(naive_cosent(left, right, GRADES, 0.3), rel=1e-9)


def test_cosent_by_hand() -> None:
    left = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    right = torch.tensor([[0.6, 0.8], [1.0, 0.0], [1.0, 0.0]])
    # Cosines 0.6, 1, 0 with scores 5, 1, 1: only the first pair is above others, so 1 - 0.6 and 0 - 0.6 are wrong.
    expected = math.log(1 + math.exp(0.4 / 0.5) + math.exp(-0.6 / 0.5))
    assert float(cosent(left, right, torch.tensor([5.0, 1.0, 1.0]), temperature=0.5)) == pytest.approx(expected)


def test_cosent_is_sentence_transformers() -> None:
    left, right = leaf(7, 3), leaf(7, 3)
    other = theirs(lambda model: peers.CoSENTLoss(model, scale=20.0), [left, right], GRADES)
    assert_same_value_and_gradient(cosent(left, right, GRADES, temperature=1 / 20), other, [left, right])


def test_of_equal_scores_cosent_learns_nothing() -> None:
    left, right = leaf(5, 3), leaf(5, 3)
    loss = cosent(left, right, torch.full((5,), 0.7), temperature=0.05)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, left)[0].any()


def test_only_the_order_of_the_scores_counts_for_cosent() -> None:
    left, right = torch.randn(7, 3), torch.randn(7, 3)
    once = cosent(left, right, GRADES, temperature=0.05)
    assert float(cosent(left, right, GRADES.exp() * 5 - 3, temperature=0.05)) == pytest.approx(float(once), rel=1e-6)
    assert float(cosent(left, right, -GRADES, temperature=0.05)) != pytest.approx(float(once), rel=1e-2)


@pytest.mark.parametrize("bias", [-3.0, 0.5])
@pytest.mark.parametrize("documents", [7, 11], ids=["in batch", "hard negatives"])
def test_bixse_is_the_naive_sum(bias: float, documents: int) -> None:
    asked, found = leaf(7, 3), leaf(documents, 3)
    none = torch.zeros(7, documents, dtype=torch.bool)
    plain = bixse(asked, found, GRADES, temperature=0.3, bias=bias)
    assert plain.item() == pytest.approx(naive_bixse(asked, found, GRADES, 0.3, bias, none), rel=1e-9)
    ignore = torch.rand(7, documents) < 0.4
    masked = bixse(asked, found, GRADES, temperature=0.3, bias=bias, ignore=ignore)
    assert masked.item() == pytest.approx(naive_bixse(asked, found, GRADES, 0.3, bias, ignore), rel=1e-9)
    assert masked.item() < plain.item()


def test_bixse_by_hand() -> None:
    queries = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    documents = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    # Own pairs have logit 1 / 0.5 - 2 = 0, so log 2 whatever their label; the two others 0 / 0.5 - 2.
    expected = math.log(2) + math.log(1 + math.exp(-2))
    found = bixse(queries, documents, torch.tensor([0.25, 1.0]), temperature=0.5, bias=-2)
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_the_best_bixse_gives_a_pair_the_probability_of_its_score() -> None:
    """With all other pairs left out, the gradient of each pair's logit is its probability less its score."""
    queries, documents = leaf(3, 5), leaf(3, 5)
    bias = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    scores = torch.tensor([0.1, 0.6, 0.8])
    everything = torch.ones(3, 3, dtype=torch.bool)
    loss = bixse(queries, documents, scores, temperature=0.5, bias=bias, ignore=everything)
    (slope,) = torch.autograd.grad(loss, bias)
    chances = [1 / (1 + math.exp(-cosine(one, other) / 0.5)) for one, other in zip(queries, documents, strict=True)]
    assert float(slope) == pytest.approx((sum(chances) - 1.5) / 3, abs=1e-7)


def test_gradients_are_those_of_the_value() -> None:
    scale, bias = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.3, -1.0))

    def graded(left: Tensor, right: Tensor, temperature: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        ordered = cosent(left, right, GRADES, temperature=temperature)
        return ordered, bixse(left, right, GRADES, temperature=temperature, bias=bias)

    assert torch.autograd.gradcheck(graded, (leaf(7, 3), leaf(7, 3), scale, bias))


def test_half_precision_vectors_are_compared_in_float32() -> None:
    left, right = torch.randn(7, 5).bfloat16(), torch.randn(7, 5).bfloat16()
    found = [
        cosent(left, right, GRADES, temperature=0.05),
        bixse(left, right, GRADES, temperature=0.05, bias=-2),
    ]
    exact = [
        cosent(left.double(), right.double(), GRADES, temperature=0.05),
        bixse(left.double(), right.double(), GRADES, temperature=0.05, bias=-2),
    ]
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == torch.float32
        assert float(one) == pytest.approx(float(other), rel=1e-5)


def test_bixse_counts_on_tensors_without_content() -> None:
    queries, documents = torch.empty(5, 7, device="meta"), torch.empty(11, 7, device="meta")
    loss = bixse(queries, documents, torch.empty(5, device="meta"), temperature=0.1, bias=-2)
    assert loss.shape == ()


def test_cosent_wants_a_score_for_every_pair(unchecked: None) -> None:
    with pytest.raises(ValueError, match=r"cosent: 5 left and 5 right vectors with 7 scores. Give two vectors and one"):
        cosent(torch.randn(5, 3), torch.randn(5, 3), GRADES, temperature=0.05)
    with pytest.raises(ValueError, match=r"cosent: 7 left and 3 right vectors with 7 scores"):
        cosent(torch.randn(7, 3), torch.randn(3, 3), GRADES, temperature=0.05)


def test_bixse_wants_labels_from_0_to_1_for_every_query(unchecked: None) -> None:
    with pytest.raises(ValueError, match=r"bixse: scores lie between 0 and 5, but they are labels from 0 to 1. Divide"):
        bixse(torch.randn(7, 3), torch.randn(7, 3), GRADES * 5, temperature=0.1, bias=0)
    with pytest.raises(ValueError, match=r"scores lie between nan and nan"):
        bixse(torch.randn(7, 3), torch.randn(7, 3), GRADES * torch.nan, temperature=0.1, bias=0)
    with pytest.raises(
        ValueError, match=r"7 queries need a score each and as many documents or more, got 7 scores and"
    ):
        bixse(torch.randn(7, 3), torch.randn(5, 3), GRADES, temperature=0.1, bias=0)
    with pytest.raises(ValueError, match=r"bixse: 5 queries need .* got 7 scores and 5 documents."):
        bixse(torch.randn(5, 3), torch.randn(5, 3), GRADES, temperature=0.1, bias=0)
