"""Clustering: do the vectors fall into the kinds of their texts by themselves?"""

from __future__ import annotations

import numpy as np
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import v_measure_score

from bothways.evaluation.tasks import Clustering
from bothways.evaluation.vectors import Embeds, finite_rows

BATCH, SEED = 500, 42
"""mteb's."""
STARTS = 10
"""k-means from so many starts: the luck of one would be larger than what encoders differ by."""


def score_clustering(encoder: Embeds, task: Clustering) -> dict[str, float]:
    """`v_measure`, 0 to 1: the agreement of labels and clusters, as many of them as labels, mean over the starts.

    Vectors are taken as they come, not scaled to unit length.
    Source: MTEB (Muennighoff et al. 2022, arXiv 2210.07316), sec. 3.2; Rosenberg and Hirschberg 2007 (V-measure).
    """
    vectors = finite_rows(encoder.encode_document(task.texts))
    count = len(set(task.labels))
    found = []
    for start in range(STARTS):
        model = MiniBatchKMeans(n_clusters=count, batch_size=BATCH, n_init="auto", random_state=SEED + start)
        found.append(v_measure_score(task.labels, model.fit_predict(vectors)))
    return {"v_measure": float(np.mean(found))}
