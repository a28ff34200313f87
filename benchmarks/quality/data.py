"""What is learnt from, what it is judged by, and that the two have no text in common."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.texts import json_rows, unlabelled
from bothways.demo.pairs import Clean, words
from bothways.evaluation import (
    Classification,
    Clustering,
    Retrieval,
    Similarity,
    Task,
    read_classification,
    read_clustering,
    read_retrieval,
    read_similarity,
)
from bothways.evaluation.classification import drawn

Triplet = tuple[str, str, str]
"""Query, positive, hard negative."""

MEASURES: dict[type, str] = {
    Similarity: "spearman",
    Retrieval: "ndcg@10",
    Classification: "accuracy",
    Clustering: "v_measure",
}
DEV_OF = {"cranfield": "xquad-en"}
"""Which task settings are chosen on in the place of one that has no part to spare; of the others it is a part."""
HELD_OUT = 5
"""Every fifth training row of a classification is what settings are chosen on."""
CLUSTERED, CLUSTERED_DEV = 4000, 2000
"""Rows of the clusters, as many of each label, and other rows to choose on."""
FEWEST_WORDS = 6
"""Words of a text that SimCSE learns from."""
SHARES = {"nli": 0.5, "medquad": 0.2, "tldr-commands": 0.15, "bible-pairs": 0.15}
"""Of the examples of the supervised stage."""


@dataclass(frozen=True)
class Corpus:
    """Everything that may be learnt from, before a seed chooses."""

    texts: list[str]
    triplets: dict[str, list[Triplet]]


def read_corpus(folder: Path) -> Corpus:
    """Unlabelled paragraphs, and triplets by their source."""
    return Corpus(unlabelled(folder)[0], {name: list(read(folder / name)) for name, read in SOURCES.items()})


def read_tasks(folder: Path, split: str, most: int | None = None) -> dict[str, Task]:
    """Name -> task, `split` being "test" or "dev". `most`: of texts to be judged, for a run that only has to run."""
    clusters = read_clustering(folder / "short-text-clusters" / "stackoverflow.jsonl.gz")
    if split == "test":
        tasks: list[Task] = [
            read_similarity(folder / "sts-b" / "test.jsonl.gz"),
            read_retrieval(folder / "cranfield"),
            read_classification(*_files(folder / "banking77", "")),
            read_classification(*_files(folder / "sentence-classification", "trec-qc.")),
            sampled(clusters, 0, CLUSTERED),
        ]
    else:
        tasks = [
            read_similarity(folder / "sts-b" / "dev.jsonl.gz"),
            read_retrieval(folder / "xquad-en"),
            part_of_train(read_classification(*_files(folder / "banking77", ""))),
            part_of_train(read_classification(*_files(folder / "sentence-classification", "trec-qc."))),
            sampled(clusters, CLUSTERED, CLUSTERED_DEV),
        ]
    names = [DEV_OF.get(name, name) if split == "dev" else name for name in TASKS]
    return dict(zip(names, tasks if most is None else [small(task, most) for task in tasks], strict=True))


TASKS = ("sts-b", "cranfield", "banking77", "trec-qc", "stackoverflow")


def texts_of(task: Task) -> list[str]:
    """The texts that a task has encoded, each once."""
    match task:
        case Similarity():
            texts = [*task.first, *task.second]
        case Retrieval():
            texts = [item.text for item in (*task.queries, *task.documents)]
        case Classification():
            texts = [task.train[place] for draw in drawn(task.train_labels) for place in draw] + task.test
        case Clustering():
            texts = task.texts
    return list(dict.fromkeys(texts))


def part_of_train(task: Classification) -> Classification:
    """The training rows alone: of each label every fifth, in the rows' order, is to be told from the others."""
    seen: dict[str, int] = {}
    held_out = []
    for place, label in enumerate(task.train_labels):
        seen[label] = seen.get(label, 0) + 1
        if seen[label] % HELD_OUT == 0:
            held_out.append(place)
    chosen = set(held_out)
    kept = [place for place in range(len(task.train)) if place not in chosen]
    return Classification(
        task.name, *_rows(task.train, task.train_labels, kept), *_rows(task.train, task.train_labels, held_out)
    )


def sampled(task: Clustering, skip: int, count: int) -> Clustering:
    """Always the same `count` texts, as many of each label, none of the `skip` that stand before them."""
    kinds = sorted(set(task.labels))
    places = []
    for kind in kinds:
        own = [place for place, label in enumerate(task.labels) if label == kind]
        random.Random(f"{task.name}/{kind}").shuffle(own)
        places += own[skip // len(kinds) : (skip + count) // len(kinds)]
    return Clustering(task.name, *_rows(task.texts, task.labels, sorted(places)))


def small(task: Task, most: int) -> Task:
    """The first rows alone."""
    match task:
        case Similarity():
            return Similarity(task.name, task.first[:most], task.second[:most], task.scores[:most])
        case Retrieval():
            queries = task.queries[: max(1, most // 10)]
            wanted = {name for query in queries for name in task.relevance[query.id]}
            documents = [document for document in task.documents if document.id in wanted]
            return Retrieval(task.name, queries, documents, {query.id: task.relevance[query.id] for query in queries})
        case Classification():
            return Classification(task.name, task.train, task.train_labels, task.test[:most], task.test_labels[:most])
        case Clustering():
            places = range(0, len(task.texts), max(1, len(task.texts) // most))
            return Clustering(task.name, *_rows(task.texts, task.labels, places))


def _rows(texts: Sequence[str], labels: Sequence[str], places: Iterable[int]) -> tuple[list[str], list[str]]:
    places = list(places)
    return [texts[place] for place in places], [labels[place] for place in places]


def _files(folder: Path, prefix: str) -> tuple[Path, Path]:
    train, test = (next(folder.glob(f"{prefix}{part}.jsonl*")) for part in ("train", "test"))
    return train, test


def _nli(folder: Path) -> Iterator[Triplet]:
    for row in json_rows(folder / "triplets.jsonl.gz"):
        yield row["anchor"], row["positive"], row["negative"]


def _medquad(folder: Path) -> Iterator[Triplet]:
    """Another answer on the same subject is the negative."""
    rows = json_rows(folder / "pairs.jsonl.gz")
    yield from _beside(rows, lambda row: (row["source"], row["focus"]), "question", "answer")


def _tldr(folder: Path) -> Iterator[Triplet]:
    """Another command of the same page is the negative."""
    yield from _beside(json_rows(folder / "pairs.jsonl.gz"), lambda row: row["page"], "query", "command")


def _bible(folder: Path) -> Iterator[Triplet]:
    """The verse that follows is the negative."""
    for row, after in pairwise(json_rows(folder / "pairs.jsonl.gz")):
        if row["s1"] != row["s2"] and after["s2"] != row["s2"]:
            yield row["s1"], row["s2"], after["s2"]


def _beside(rows: list[Any], place: Callable[[Any], Any], query: str, document: str) -> Iterator[Triplet]:
    """The next document of the same place is the negative; the first one's is that of the last."""
    groups: dict[Any, list[Any]] = {}
    for row in rows:
        groups.setdefault(place(row), []).append(row)
    for group in groups.values():
        for row, other in zip(group, [*group[1:], group[0]], strict=True):
            if other[document] != row[document] and other[query] != row[query]:
                yield row[query], row[document], other[document]


SOURCES: dict[str, Callable[[Path], Iterator[Triplet]]] = {
    "nli": _nli,
    "medquad": _medquad,
    "tldr-commands": _tldr,
    "bible-pairs": _bible,
}


@dataclass(frozen=True)
class Drawn:
    """What one run learns from: as many texts and triplets as fill the tokens of a stage."""

    blocks: list[str]
    """For MNTP, which joins them."""
    texts: list[str]
    """For SimCSE."""
    triplets: list[Triplet]


def draw(
    corpus: Corpus, seed: int, tokens: int, count: Callable[[list[str], int | None], list[int]], most: int, clean: Clean
) -> Drawn:
    """From a seed: `tokens` of each, texts of the contrastive stages cut at `most` tokens, views counted twice.

    `count(texts, most)` gives the tokens of texts. Nothing is taken that holds a run of an evaluated text.
    """
    rng = random.Random(f"quality/{seed}")
    texts = (text for text in rng.sample(corpus.texts, len(corpus.texts)) if clean(text))
    blocks = list(_filled(((text,) for text in texts), tokens, lambda row: count(list(row), None)))
    # SimCSE goes on where MNTP stopped, so that no stage profits from having seen its texts before.
    long = (text for text in texts if len(words(text)) >= FEWEST_WORDS)
    views = list(_filled(((text,) for text in long), tokens // 2, lambda row: count(list(row), most)))
    mixed = (row for row in _mixed(corpus, rng) if all(map(clean, row)))
    triplets = list(_filled(mixed, tokens, lambda row: count(list(row), most)))
    return Drawn([text for (text,) in blocks], [text for (text,) in views], triplets)


def _filled(rows: Iterable[Any], tokens: int, count: Callable[[Any], list[int]]) -> Iterator[Any]:
    total = 0
    for row in rows:
        if total >= tokens:
            return
        total += sum(count(row))
        yield row


def _mixed(corpus: Corpus, rng: random.Random) -> Iterator[Triplet]:
    """Triplets of all sources in their shares, each at most once."""
    left = {name: rng.sample(rows, len(rows)) for name, rows in corpus.triplets.items() if rows}
    while left:
        (name,) = rng.choices(list(left), [SHARES[name] for name in left])
        yield left[name].pop()
        if not left[name]:
            del left[name]
