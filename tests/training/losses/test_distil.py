"""Distillation losses against plain loops (property), and as sentence-transformers has them (parity)."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from beside import assert_same_value_and_gradient, cosine, leaf, theirs
from sentence_transformers.sentence_transformer import losses as peers
from sentence_transformers.util import pairwise_cos_sim
from torch import Tensor

from bothways.training.losses import cosine_distance, similarity_kl


def naive_kl(student: Tensor, teacher: Tensor, temperature: float) -> float:
    total = 0.0
    for i in range(len(student)):
        others = [j for j in range(len(student)) if j != i]
        taught = [math.exp(cosine(teacher[i], teacher[j]) / temperature) for j in others]
        learned = [math.exp(cosine(student[i], student[j]) / temperature) for j in others]
        for p, q in zip(taught, learned, strict=True):
            p, q = p / sum(taught), q / sum(learned)
            total += p * math.log(p / q)
    return total / len(student)


def test_cosine_distance_is_the_naive_mean() -> None:
    student, teacher = leaf(7, 3), leaf(7, 3)
    expected = sum(1 - cosine(one, other) for one, other in zip(student, teacher, strict=True)) / 7
    assert cosine_distance(student, teacher).item() == pytest.approx(expected, rel=1e-9)


def test_cosine_distance_by_hand() -> None:
    student = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    teacher = torch.tensor([[9.0, 0.0], [0.0, -1.0], [3.0, 4.0]])
    assert float(cosine_distance(student, teacher)) == pytest.approx((0 + 2 + 0.4) / 3, rel=1e-6)


def test_cosine_distance_is_sentence_transformers() -> None:
    student, teacher = leaf(7, 3), torch.randn(7, 3, dtype=torch.float64)
    other = theirs(lambda model: peers.EmbedDistillLoss(model, distance_metric="cosine"), [student], teacher)
    assert_same_value_and_gradient(cosine_distance(student, teacher), other, [student])


def test_cosine_distance_is_their_squared_error_of_unit_vectors() -> None:
    student, teacher = leaf(7, 3), torch.randn(7, 3, dtype=torch.float64)
    units = [torch.nn.functional.normalize(vectors, dim=1) for vectors in (student, teacher)]
    other = theirs(peers.MSELoss, units[:1], units[1])
    assert_same_value_and_gradient(cosine_distance(student, teacher), other * 3 / 2, [student])


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_similarity_kl_is_the_naive_sum(temperature: float) -> None:
    student, teacher = leaf(7, 3), leaf(7, 5)
    found = similarity_kl(student, teacher, temperature=temperature)
    assert found.item() == pytest.approx(naive_kl(student, teacher, temperature), rel=1e-8)
    assert found.item() > 0


def test_similarity_kl_by_hand() -> None:
    student = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    teacher = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    # The teacher is as similar to one as to the other. So is the student's row 0; its rows 1 and 2 are 0 and 1.
    low, high = (math.exp(value) / (1 + math.e) for value in (0, 1))
    expected = 2 / 3 * (0.5 * math.log(0.5 / low) + 0.5 * math.log(0.5 / high))
    assert float(similarity_kl(student, teacher, temperature=1)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_similarity_kl_is_sentence_transformers_of_each_text_with_the_others(temperature: float) -> None:
    """Theirs scores one query against columns of documents, here the other rows in turn, and is times T squared."""
    student, teacher = leaf(7, 3), torch.randn(7, 5, dtype=torch.float64)
    turns = [student.roll(-k, dims=0) for k in range(7)]
    scores = torch.stack([pairwise_cos_sim(teacher, teacher.roll(-k, dims=0)) for k in range(1, 7)], dim=1)
    make = partial(peers.DistillKLDivLoss, similarity_fct=pairwise_cos_sim, temperature=temperature)
    other = theirs(make, turns, scores) / temperature**2
    assert_same_value_and_gradient(similarity_kl(student, teacher, temperature=temperature), other, [student])


def test_a_student_that_turns_and_stretches_the_teachers_space_has_nothing_left_to_learn() -> None:
    teacher = torch.randn(7, 5, dtype=torch.float64)
    turned = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    student = (3 * teacher @ turned).requires_grad_()
    loss = similarity_kl(student, teacher, temperature=0.05)
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert float(torch.autograd.grad(loss, student)[0].abs().max()) < 1e-12


def test_the_teacher_gets_no_gradient() -> None:
    student, teacher = leaf(7, 3), leaf(7, 3)
    for loss in (cosine_distance(student, teacher), similarity_kl(student, teacher, temperature=0.1)):
        one, other = torch.autograd.grad(loss, (student, teacher), allow_unused=True)
        assert bool(one.any())
        assert other is None


def test_gradients_are_those_of_the_value() -> None:
    teacher = torch.randn(7, 3, dtype=torch.float64)

    def both(student: Tensor) -> tuple[Tensor, Tensor]:
        return cosine_distance(student, teacher), similarity_kl(student, teacher, temperature=0.3)

    assert torch.autograd.gradcheck(both, leaf(7, 3))


def test_half_precision_vectors_are_compared_in_float32() -> None:
    student, teacher = torch.randn(7, 5).bfloat16(), torch.randn(7, 5).bfloat16()
    for loss in (cosine_distance, partial(similarity_kl, temperature=0.1)):
        found = loss(student, teacher)
        assert found.dtype == torch.float32
        assert float(found) == pytest.approx(float(loss(student.double(), teacher.double())), rel=1e-5)


def test_what_does_not_fit_is_said(unchecked: None) -> None:
    with pytest.raises(
        ValueError, match=r"7 vectors of 3 of the student, 7 vectors of 5 of the teacher. Project the st"
    ):
        cosine_distance(torch.randn(7, 3), torch.randn(7, 5))
    with pytest.raises(
        ValueError, match=r"similarity_kl: 7 vectors of 3 of the student, 5 vectors of 3 of the teacher"
    ):
        similarity_kl(torch.randn(7, 3), torch.randn(5, 3), temperature=0.1)
    with pytest.raises(
        ValueError, match=r"similarity_kl: 2 texts have no similarities to compare. Use batches of 3 or"
    ):
        similarity_kl(torch.randn(2, 3), torch.randn(2, 5), temperature=0.1)
