"""Property: which of two references vectors are nearer to, in every number format; what cannot tell has no say."""

from __future__ import annotations

import numpy as np
import pytest

from bothways.errors import ConfigError, DataError
from bothways.export.judging import COSINES, FORMATS, Judge
from bothways.export.references import unit

RANDOM = np.random.default_rng(0)
TEXTS, DIM = 7, 33
TWO_WAY, ONE_WAY = (unit(RANDOM.standard_normal((TEXTS, DIM))) for _ in range(2))
REFERENCES = {"bidirectional": TWO_WAY, "causal": ONE_WAY}


def off(vectors: np.ndarray, cosine: float) -> np.ndarray:
    """Unit vectors at that cosine to `vectors`."""
    noise = RANDOM.standard_normal(vectors.shape)
    noise = unit(noise - (noise * vectors).sum(axis=1, keepdims=True) * vectors)
    return cosine * vectors + np.sqrt(1 - cosine**2) * noise


@pytest.mark.parametrize("number_format", COSINES)
def test_a_format_allows_its_cosine_and_no_less(number_format: str) -> None:
    judge = Judge.of(None, number_format)
    lowest = COSINES[number_format]
    for direction, reference in REFERENCES.items():
        inside = judge.compare(off(reference, lowest + 0.1 * (1 - lowest)), REFERENCES)
        assert inside.verdict() == inside.match() == direction
        outside = judge.compare(off(reference, lowest - 0.1 * (1 - lowest)), REFERENCES)
        assert outside.verdict() == outside.match() == "neither"


def test_float32_allows_rounding() -> None:
    judge = Judge.of(None, "float32")
    assert judge.compare(TWO_WAY + 9e-5, REFERENCES).verdict() == "bidirectional"
    assert judge.compare(TWO_WAY + 1.1e-4, REFERENCES).verdict() == "neither"
    assert Judge.of(1e-3, "float32").compare(TWO_WAY + 1.1e-4, REFERENCES).verdict() == "bidirectional"


def test_unknown_is_the_least_exact() -> None:
    assert Judge.of(None, None).cosine == min(COSINES.values())
    assert set(FORMATS) == {"float32", *COSINES}


@pytest.mark.parametrize("one_way", [ONE_WAY, off(TWO_WAY, 0.999)], ids=["far", "near enough for int8"])
def test_one_causal_text_is_enough_to_be_wrong(one_way: np.ndarray) -> None:
    found = TWO_WAY.copy()
    found[3] = one_way[3]
    compared = Judge.of(None, "int8").compare(found, {"bidirectional": TWO_WAY, "causal": one_way})
    assert compared.verdict() == "neither"
    assert [compared[number : number + 1].match() for number in range(TEXTS)] == [
        "causal" if number == 3 else "bidirectional" for number in range(TEXTS)
    ]


def test_texts_whose_references_coincide_do_not_decide() -> None:
    same = {"bidirectional": TWO_WAY, "causal": np.vstack([TWO_WAY[:2], ONE_WAY[2:]])}
    compared = Judge.of(None, "float32").compare(same["causal"], same)
    assert compared[:2].match() == "either"
    assert compared.verdict() == "causal"
    with pytest.raises(DataError, match=r"on these texts the bidirectional and the causal vectors are the same"):
        compared[:2].verdict()


def test_between_two_near_references_nothing_is_told() -> None:
    """All is near, but half of the texts are as near to one as to the other."""
    close = {"bidirectional": TWO_WAY, "causal": off(TWO_WAY, 0.999)}
    between = unit(close["bidirectional"] + close["causal"])
    compared = Judge.of(None, "int8").compare(between, close)
    assert compared.match() == "either"
    assert compared.verdict() == "neither"


@pytest.mark.parametrize("tolerance", [0.0, -1e-4, float("nan")])
def test_a_tolerance_is_above_zero(tolerance: float) -> None:
    with pytest.raises(ConfigError, match=r"tolerance=.*, expected a difference above 0"):
        Judge.of(tolerance, None)
