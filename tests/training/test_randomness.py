"""Chance: the same numbers from the same seed, and the caller's generators untouched."""

from __future__ import annotations

import random

import numpy as np
import torch

from bothways.training.randomness import borrowed_generators, seed_everything


def draws() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]


def test_the_same_numbers_give_the_same_chance() -> None:
    with borrowed_generators():
        seed_everything(3, 1, 4)
        first = draws()
        assert draws() != first
        seed_everything(3, 1, 5)
        assert draws() != first
        seed_everything(3, 1, 4)
        assert draws() == first


def test_the_callers_generators_go_on_as_if_nothing_had_been() -> None:
    random.seed(7), np.random.seed(7), torch.manual_seed(7)
    expected = draws() + draws()
    random.seed(7), np.random.seed(7), torch.manual_seed(7)
    found = draws()
    with borrowed_generators():
        seed_everything(1)
        draws()
    assert found + draws() == expected
