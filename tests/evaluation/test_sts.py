"""Spearman of cosines: by hand, and where nothing can be ordered."""

from __future__ import annotations

import numpy as np
import pytest

from bothways.errors import DataError
from bothways.evaluation import Similarity, score
from bothways.evaluation.sts import cosines


class Angles:
    """A text is an angle in degrees; its vector's length must not matter."""

    def __init__(self) -> None:
        self.encoded: list[str] = []

    def encode_query(self, texts: list[str], /) -> np.ndarray:
        raise AssertionError("pairs are alike on both sides: neither is a query")

    def encode_document(self, texts: list[str], /) -> np.ndarray:
        self.encoded += texts
        angles = np.radians([float(text) for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1) * (1 + angles[:, None])


def test_cosines_are_of_the_pairs_and_each_text_is_encoded_once() -> None:
    encoder = Angles()
    found = cosines(encoder, ["0", "0", "30"], ["60", "0", "60"])
    np.testing.assert_allclose(found, [0.5, 1, np.sqrt(3) / 2], atol=1e-6)
    assert sorted(encoder.encoded) == ["0", "30", "60"]


def test_spearman_compares_orders_alone() -> None:
    task = Similarity("angles", ["0"] * 3, ["10", "50", "80"], [5.0, 4.9, 0.0])
    assert score(Angles(), task)["spearman"] == pytest.approx(1)
    task = Similarity("angles", ["0"] * 3, ["10", "50", "80"], [5.0, 0.0, 1.0])
    assert score(Angles(), task)["spearman"] == pytest.approx(0.5)


def test_equal_cosines_order_nothing() -> None:
    assert score(Angles(), Similarity("same", ["7", "9"], ["7", "9"], [1.0, 2.0])) == {"spearman": 0.0}


def test_a_vector_that_is_not_finite_is_named() -> None:
    with pytest.raises(DataError, match="the vector of text 2 is not finite"):
        score(Angles(), Similarity("nan", ["1", "2"], ["nan", "3"], [1.0, 2.0]))
