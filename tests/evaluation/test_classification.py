"""Contract: mteb's draws and its regression; only what is drawn is encoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from bothways.errors import DataError
from bothways.evaluation import Classification, TfIdf, compare, read_classification, score
from bothways.evaluation.classification import EXPERIMENTS, drawn

LABELS = [str(number % 3) for number in range(41)] + ["rare"] * 2


class Known:
    """The vector of the text "7 2" is two noisy coordinates around the place of label 2."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode_document(self, texts: Sequence[str], /) -> Any:
        self.asked += texts
        rows = [tuple(map(int, text.split())) for text in texts]
        return np.array([[label * 2.0 + (number % 7) / 9, label % 2 + (number % 5) / 8] for number, label in rows])

    encode_query = encode_document


def task(train: int = 83, test: int = 31) -> Classification:
    texts = [f"{number} {number % 4}" for number in range(train + test)]
    labels = [text.split()[1] for text in texts]
    return Classification("t", texts[:train], labels[:train], texts[train:], labels[train:])


def test_eight_texts_of_each_label_are_drawn_anew_each_time() -> None:
    draws = list(drawn(LABELS))
    assert len(draws) == EXPERIMENTS
    assert len({tuple(draw) for draw in draws}) == EXPERIMENTS
    for draw in draws:
        assert Counter(LABELS[place] for place in draw) == {"0": 8, "1": 8, "2": 8, "rare": 2}
    assert draws == list(drawn(LABELS))


def test_the_accuracy_is_that_of_plain_code_and_only_what_is_drawn_is_encoded() -> None:
    given, encoder = task(), Known()
    found = score(encoder, given)
    draws = list(drawn(given.train_labels))
    used = {given.train[place] for draw in draws for place in draw}
    assert sorted(encoder.asked) == sorted([*used, *given.test])
    accuracies = []
    for draw in draws:
        model = LogisticRegression(max_iter=100, random_state=42)
        model.fit(Known().encode_document([given.train[i] for i in draw]), [given.train_labels[i] for i in draw])
        accuracies.append(model.score(Known().encode_document(given.test), given.test_labels))
    assert found["accuracy"] == pytest.approx(np.mean(accuracies))
    assert 0.25 < found["f1"] <= 1


def test_the_floor_counts_words_of_the_training_texts() -> None:
    given = Classification(
        "t",
        ["red rose", "red apple", "blue sea", "blue sky"],
        ["r", "r", "b", "b"],
        ["red wine", "blue whale"],
        ["r", "b"],
    )
    (row,) = compare({}, [given])
    assert row["accuracy"] == 1.0
    assert "wine" not in TfIdf.of(given).vectorizer.vocabulary_


def test_files_are_read_and_a_label_that_nobody_could_know_is_named(tmp_path: Path) -> None:
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    train.write_text('{"text": "a", "label": 1}\n{"text": "b", "label": "x"}\n')
    test.write_text('{"text": "c", "label": "x"}\n{"text": "d", "label": 1}\n')
    assert read_classification(train, test) == Classification(
        tmp_path.name, ["a", "b"], ["1", "x"], ["c", "d"], ["x", "1"]
    )
    test.write_text('{"text": "c", "label": "x"}\n{"text": "d", "label": "y"}\n')
    with pytest.raises(DataError, match=r'test.jsonl: the label "y" is in no row of train.jsonl'):
        read_classification(train, test)
    train.write_text('{"text": "a", "label": "x"}\n')
    with pytest.raises(DataError, match=r'train.jsonl: every label is "x"\. Give texts of at least two kinds'):
        read_classification(train, test)


def test_a_vector_that_is_not_finite_is_named() -> None:
    class Broken(Known):
        def encode_document(self, texts: Sequence[str], /) -> Any:
            return np.full((len(texts), 3), np.nan)

    with pytest.raises(DataError, match="the vector of text 0 is not finite"):
        score(Broken(), task())
