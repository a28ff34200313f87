"""How good an encoder is, on local files: `evaluate(encoder, ["sts-b/dev.jsonl.gz", "cranfield/"])`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bothways.evaluation.classification import score_classification
from bothways.evaluation.clustering import score_clustering
from bothways.evaluation.lexical import TfIdf
from bothways.evaluation.retrieval import score_retrieval
from bothways.evaluation.sts import score_similarity
from bothways.evaluation.tables import Cell
from bothways.evaluation.tasks import (
    Classification,
    Clustering,
    Retrieval,
    Similarity,
    Task,
    read_classification,
    read_clustering,
    read_retrieval,
    read_similarity,
    read_task,
)
from bothways.evaluation.vectors import Embeds

__all__ = [
    "Classification",
    "Clustering",
    "Embeds",
    "Retrieval",
    "Similarity",
    "Task",
    "TfIdf",
    "compare",
    "evaluate",
    "read_classification",
    "read_clustering",
    "read_retrieval",
    "read_similarity",
    "read_task",
    "score",
]

FLOOR = "tf-idf"


def evaluate(encoder: Embeds, tasks: Sequence[str | Path | Task]) -> dict[str, dict[str, float]]:
    """Task -> measure -> value, for example `{"cranfield": {"ndcg@10": 0.31, "recall@10": 0.35, "mrr@10": 0.42}}`.

    A task is a path as `read_task` takes it, or a task that was read. Raises DataError for one that cannot be used.
    """
    return {task.name: score(encoder, task) for task in _read(tasks)}


def score(encoder: Embeds, task: Task) -> dict[str, float]:
    """The measures of one task, by name."""
    match task:
        case Similarity():
            return score_similarity(encoder, task)
        case Retrieval():
            return score_retrieval(encoder, task)
        case Classification():
            return score_classification(encoder, task)
        case Clustering():
            return score_clustering(encoder, task)


def compare(encoders: Mapping[str, Embeds], tasks: Sequence[str | Path | Task]) -> list[dict[str, Cell]]:
    """One row per task and encoder, tf-idf first, ready for the functions of `tables`."""
    rows: list[dict[str, Cell]] = []
    for task in _read(tasks):
        for name, encoder in {FLOOR: TfIdf.of(task), **encoders}.items():
            rows.append({"task": task.name, "encoder": name, **score(encoder, task)})
    return rows


def _read(tasks: Sequence[str | Path | Task]) -> list[Task]:
    return [read_task(task) if isinstance(task, str | Path) else task for task in tasks]
