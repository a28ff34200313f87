"""Contract: clusters that are there are found, none are found in noise, and the files are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bothways.errors import DataError
from bothways.evaluation import Clustering, TfIdf, read_clustering, score

LABELS = [str(number % 5) for number in range(211)]
TEXTS = [f"{label} {number}" for number, label in enumerate(LABELS)]


class Around:
    """Vectors around five places, `spread` away from them."""

    def __init__(self, spread: float) -> None:
        self.spread = spread

    def encode_document(self, texts: Sequence[str], /) -> Any:
        rng = np.random.default_rng(0)
        places = np.eye(7)[[int(text.split()[0]) for text in texts]] * 10
        return places + rng.normal(size=places.shape) * self.spread

    encode_query = encode_document


def test_clusters_that_are_there_are_found_and_in_noise_there_are_none() -> None:
    task = Clustering("t", TEXTS, LABELS)
    apart, mixed, noise = (score(Around(spread), task)["v_measure"] for spread in (0.1, 5.0, 1000.0))
    assert apart > 0.85
    assert apart > mixed > noise
    assert noise < 0.15
    assert score(Around(5.0), task)["v_measure"] == mixed


def test_the_floor_sees_the_texts() -> None:
    task = Clustering("t", ["red rose", "red apple", "blue sea", "blue sky"] * 3, ["r", "r", "b", "b"] * 3)
    assert score(TfIdf.of(task), task)["v_measure"] > 0.5


def test_rows_of_text_and_label_are_read(tmp_path: Path) -> None:
    path = tmp_path / "titles.jsonl"
    path.write_text('{"text": "a", "label": 1}\n{"text": "b", "label": 20}\n')
    assert read_clustering(path) == Clustering(f"{tmp_path.name}/titles", ["a", "b"], ["1", "20"])
    path.write_text('{"text": "a", "label": 1.5}\n')
    with pytest.raises(DataError, match=r'titles.jsonl line 1: "label" is a number, expected a text'):
        read_clustering(path)
