"""Classification: do a few labelled vectors of each kind tell the kinds of the others?"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score

from bothways.evaluation.tasks import Classification
from bothways.evaluation.vectors import Embeds, finite_rows

EXPERIMENTS, SAMPLES_PER_LABEL, ITERATIONS, SEED = 10, 8, 100, 42
"""mteb's: ten times, eight texts of each label are drawn and a logistic regression is fitted to their vectors."""


def score_classification(encoder: Embeds, task: Classification) -> dict[str, float]:
    """`accuracy` and `f1` (of each label, averaged), 0 to 1, on the test texts, mean over the experiments.

    Vectors are taken as they come, not scaled to unit length. Only the training texts that are drawn are encoded.
    Source: MTEB (Muennighoff et al. 2022, arXiv 2210.07316), sec. 3.2; mteb's AbsTaskClassification.
    """
    draws = list(drawn(task.train_labels))
    used = sorted({place for draw in draws for place in draw})
    row = {place: number for number, place in enumerate(used)}
    known = finite_rows(encoder.encode_document([task.train[place] for place in used]))
    asked = finite_rows(encoder.encode_document(task.test))
    found = []
    for draw in draws:
        model = LogisticRegression(max_iter=ITERATIONS, random_state=SEED)
        with warnings.catch_warnings():
            # The protocol stops after so many iterations, converged or not.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(known[[row[place] for place in draw]], [task.train_labels[place] for place in draw])
        told = model.predict(asked)
        macro = f1_score(task.test_labels, told, average="macro", zero_division=0)
        found.append((accuracy_score(task.test_labels, told), macro))
    accuracy, f1 = np.mean(found, axis=0)
    return {"accuracy": float(accuracy), "f1": float(f1)}


def drawn(labels: Sequence[str]) -> Iterator[list[int]]:
    """For each experiment the places of SAMPLES_PER_LABEL texts of each label, or of all where there are fewer.

    The shuffles are mteb's, so that both draw the same texts of the same rows.
    """
    order = list(range(len(labels)))
    for _ in range(EXPERIMENTS):
        np.random.RandomState(SEED).shuffle(order)
        seen: Counter[str] = Counter()
        draw = []
        for place in order:
            if seen[labels[place]] < SAMPLES_PER_LABEL:
                seen[labels[place]] += 1
                draw.append(place)
        yield draw
