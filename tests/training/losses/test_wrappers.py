"""Matryoshka and the spread-out regulariser: by loops (property), and as sentence-transformers has them (parity)."""

from __future__ import annotations

import pytest
import torch
from beside import assert_same_value_and_gradient, cosine, leaf, theirs
from sentence_transformers.sentence_transformer import losses as peers
from torch import Tensor
from torch.nn import functional as F

from bothways.training.losses import cosent, info_nce, matryoshka, spread_out

GRADES = torch.tensor([0.2, 0.9, 0.2, 0.5, 1.0])


def pairs_loss(vectors: Tensor) -> Tensor:
    return info_nce(vectors[:5], vectors[5:], temperature=0.05)


def naive_spread(vectors: Tensor, ignore: Tensor) -> float:
    squares = [
        cosine(one, other) ** 2
        for i, one in enumerate(vectors)
        for j, other in enumerate(vectors)
        if i != j and not ignore[i, j]
    ]
    return sum(squares) / len(squares)


def test_matryoshka_is_the_weighted_sum_over_prefixes() -> None:
    vectors = torch.randn(13, 11)
    expected = sum(
        weight * float(pairs_loss(F.normalize(vectors[:, :dim], dim=1)))
        for dim, weight in ((3, 0.5), (11, 1.0), (7, 2.0))
    )
    found = matryoshka(pairs_loss, vectors, (3, 11, 7), (0.5, 1.0, 2.0))
    assert float(found) == pytest.approx(expected, rel=1e-6)
    assert float(matryoshka(pairs_loss, vectors, [11])) == pytest.approx(float(pairs_loss(vectors)), rel=1e-6)


def test_matryoshka_is_sentence_transformers() -> None:
    columns = [leaf(5, 11) for _ in range(3)]
    dims, weights = [11, 7, 3], [1.0, 0.5, 0.25]

    def wrapped(model: torch.nn.Module) -> torch.nn.Module:
        inner = peers.MultipleNegativesRankingLoss(model, scale=20.0)
        return peers.MatryoshkaLoss(model, inner, dims, weights)

    ours = matryoshka(pairs_loss, torch.cat(columns), dims, weights)
    assert_same_value_and_gradient(ours, theirs(wrapped, columns), columns)


def test_matryoshka_of_graded_pairs_is_sentence_transformers() -> None:
    columns = [leaf(5, 11), leaf(5, 11)]

    def wrapped(model: torch.nn.Module) -> torch.nn.Module:
        return peers.MatryoshkaLoss(model, peers.CoSENTLoss(model, scale=20.0), [11, 2])

    other = theirs(wrapped, columns, GRADES)
    ours = matryoshka(lambda rows: cosent(rows[:5], rows[5:], GRADES, temperature=0.05), torch.cat(columns), [2, 11])
    assert_same_value_and_gradient(ours, other, columns)


def test_columns_beyond_every_dim_get_no_gradient() -> None:
    vectors = leaf(13, 11)
    (slopes,) = torch.autograd.grad(matryoshka(pairs_loss, vectors, [7, 3]), vectors)
    assert not slopes[:, 7:].any()
    assert bool((slopes[:, :7] != 0).all())


@pytest.mark.parametrize(
    ("dims", "weights", "text"),
    [
        ([7, 13], None, r"matryoshka: dim 13 of vectors with 11 columns. Use dims from 1 to 11."),
        ([0], None, r"matryoshka: dim 0 of vectors with 11 columns"),
        ([], None, r"matryoshka: no dims. Name at least one number of columns to keep."),
        ([7, 3], [1.0], r"matryoshka: 2 dims, but 1 weights. Give one weight for each."),
    ],
)
def test_dims_that_do_not_fit_are_named(dims: list[int], weights: list[float] | None, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        matryoshka(pairs_loss, torch.randn(13, 11), dims, weights)


def test_spread_out_is_the_naive_mean() -> None:
    vectors = leaf(7, 3)
    none = torch.zeros(7, 7, dtype=torch.bool)
    assert spread_out(vectors).item() == pytest.approx(naive_spread(vectors, none), rel=1e-9)
    ignore = torch.rand(7, 7) < 0.4
    assert spread_out(vectors, ignore=ignore).item() == pytest.approx(naive_spread(vectors, ignore), rel=1e-9)


def test_spread_out_by_hand() -> None:
    # Cosines 0.6 and 0, then -0.8: the squares 0.36, 0, 0.64 twice each.
    vectors = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, -5.0]])
    assert float(spread_out(vectors)) == pytest.approx(1 / 3, rel=1e-6)
    first_two = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 0]]).bool()
    assert float(spread_out(vectors, ignore=first_two)) == pytest.approx(0.32, rel=1e-6)


def test_spread_out_is_the_second_moment_of_sentence_transformers() -> None:
    """Theirs is cut off below 1 / dim; these vectors lean to one side, so that neither column is."""
    columns = [leaf(7, 5), leaf(7, 5)]
    leaning = [column + 1 for column in columns]
    other = theirs(
        lambda model: peers.GlobalOrthogonalRegularizationLoss(model, mean_weight=0.0, aggregation="sum"), leaning
    )["gor_second_moment"]
    values = [spread_out(column) for column in leaning]
    assert min(value.item() for value in values) > 1 / 5
    assert_same_value_and_gradient(sum(values) - 2 / 5, other, columns)


def test_spread_out_of_even_directions_is_one_by_the_width() -> None:
    """Exactly so for the cosines of all rows with themselves and each other, of two orthogonal bases."""
    basis = torch.linalg.qr(torch.randn(7, 7))[0]
    rows = torch.cat([torch.eye(7), basis])
    assert float(spread_out(rows)) == pytest.approx((14 * 14 / 7 - 14) / (14 * 13), rel=1e-5)


def test_one_row_alone_is_spread_out() -> None:
    vectors = leaf(1, 5)
    loss = spread_out(vectors)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, vectors)[0].any()


def test_gradients_are_those_of_the_value() -> None:
    def both(vectors: Tensor) -> tuple[Tensor, Tensor]:
        return matryoshka(pairs_loss, vectors, [5, 3], [1.0, 0.3]), spread_out(vectors)

    assert torch.autograd.gradcheck(both, leaf(11, 5))


def test_half_precision_vectors_are_spread_in_float32() -> None:
    vectors = torch.randn(7, 5).bfloat16()
    assert spread_out(vectors).dtype == torch.float32
    assert float(spread_out(vectors)) == pytest.approx(float(spread_out(vectors.double())), rel=1e-6)
