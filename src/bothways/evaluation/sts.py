"""Semantic textual similarity: do the cosines order the pairs as people do?"""

from __future__ import annotations

import numpy as np
from scipy.stats import spearmanr

from bothways.evaluation.tasks import Similarity
from bothways.evaluation.vectors import Embeds, Floats, unit_rows


def score_similarity(encoder: Embeds, task: Similarity) -> dict[str, float]:
    """`spearman`: the rank correlation, -1 to 1, of the cosines and the human scores. 0 where all cosines are equal."""
    found = cosines(encoder, task.first, task.second)
    # Below the rounding of float32 there is no order to compare.
    if np.ptp(found) < 1e-6:
        return {"spearman": 0.0}
    return {"spearman": float(spearmanr(found, task.scores).statistic)}


def cosines(encoder: Embeds, first: list[str], second: list[str]) -> Floats:
    """The cosine of each pair, shape (pairs,). A text that occurs several times is encoded once."""
    texts = list(dict.fromkeys([*first, *second]))
    row = {text: index for index, text in enumerate(texts)}
    vectors = unit_rows(encoder.encode_document(texts))
    left, right = vectors[[row[text] for text in first]], vectors[[row[text] for text in second]]
    together = left.multiply(right) if hasattr(left, "multiply") else left * right
    return np.asarray(together.sum(axis=1)).ravel()
