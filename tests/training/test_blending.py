"""Parity and property: weighted sums and arcs against plain formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bothways.training.blending import arc, linear, slerp


def some(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_linear_is_the_weighted_sum_of_tensors_or_of_differences() -> None:
    base, a, b = (some(3, 5, seed=seed) for seed in range(3))
    torch.testing.assert_close(linear([a, b], [0.3, 0.7], None), 0.3 * a + 0.7 * b)
    torch.testing.assert_close(linear([a, b], [0.3, 0.7], base), 0.3 * a + 0.7 * b)
    torch.testing.assert_close(linear([a, b], [1.0, -0.5], base), base + (a - base) - 0.5 * (b - base))


def test_it_adds_up_in_float32() -> None:
    """In bfloat16 one and 2^-9 would be one."""
    tensors = [torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([2.0**-9], dtype=torch.bfloat16)]
    assert linear(tensors, [1.0, 1.0], None).item() == 1 + 2**-9
    assert slerp(tensors, [0.5, 0.5], None).dtype == torch.float32


@given(st.floats(0, 1), st.integers(0, 9))
def test_an_arc_is_shoemakes_formula(t: float, seed: int) -> None:
    a, b = some(3, 7, seed=seed).double(), some(3, 7, seed=seed + 10).double()
    angle = math.acos(float((a * b).sum() / (a.norm() * b.norm())))
    expected = (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)
    torch.testing.assert_close(arc(a.float(), b.float(), t), expected.float(), atol=1e-5, rtol=1e-5)


@given(st.floats(0, 1))
def test_between_equal_lengths_the_length_stays_and_the_angle_grows_evenly(t: float) -> None:
    a, b = some(35, seed=1), some(35, seed=2)
    a, b = a / a.norm(), b / b.norm()
    found = arc(a, b, t)
    assert found.norm().item() == pytest.approx(1, abs=1e-5)
    assert math.acos(min(1.0, float(found @ a))) == pytest.approx(t * math.acos(float(a @ b)), abs=2e-3)


@pytest.mark.parametrize("factor", [2.0, -2.0, 0.0, 1 + 1e-6])
def test_parallel_antiparallel_and_zero_are_merged_linearly(factor: float) -> None:
    a = some(3, 5, seed=0)
    torch.testing.assert_close(arc(a, factor * a, 0.3), 0.7 * a + 0.3 * factor * a)
    torch.testing.assert_close(arc(factor * a, a, 0.3), 0.7 * factor * a + 0.3 * a)


def test_where_the_arc_begins_nothing_jumps() -> None:
    """On both sides of the smallest angle that is an arc."""
    a = torch.tensor([1.0, 0.0])
    found = [arc(a, torch.tensor([math.cos(angle), math.sin(angle)]), 0.4) for angle in (0.9e-3, 1.1e-3)]
    for angle, vector in zip((0.9e-3, 1.1e-3), found, strict=True):
        torch.testing.assert_close(vector, torch.tensor([math.cos(0.4 * angle), math.sin(0.4 * angle)]))


def test_several_are_gone_through_in_their_order() -> None:
    base, a, b, c = (some(5, seed=seed) for seed in range(4))
    expected = base + arc(arc(a - base, b - base, 0.2 / 0.5), c - base, 0.5)
    torch.testing.assert_close(slerp([a, b, c], [0.3, 0.2, 0.5], base), expected)
    for number, tensor in enumerate((a, b, c)):
        alone = [float(number == other) for other in range(3)]
        torch.testing.assert_close(slerp([a, b, c], alone, None), tensor)
