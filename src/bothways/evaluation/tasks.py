"""What is measured: scored pairs, queries and the documents that answer them, texts with labels. Read from files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bothways.data import Document, RowError, document_parser, field_text, read_rows, row_field, row_id
from bothways.data.beir import CORPUS, QUERIES, by_query, part, read_judgements
from bothways.errors import DataError


@dataclass(frozen=True)
class Similarity:
    """Pairs of texts and how alike people find them; a higher score is more alike, its scale does not matter."""

    name: str
    first: list[str]
    second: list[str]
    scores: list[float]


@dataclass(frozen=True)
class Retrieval:
    """Queries, documents, and for each query id the graded relevance of some document ids (0 is not relevant)."""

    name: str
    queries: list[Document]
    documents: list[Document]
    relevance: dict[str, dict[str, int]]


@dataclass(frozen=True)
class Classification:
    """Texts of known kinds to learn from, and others whose kinds are to be told."""

    name: str
    train: list[str]
    train_labels: list[str]
    test: list[str]
    test_labels: list[str]


@dataclass(frozen=True)
class Clustering:
    """Texts, and the kinds that they should fall into without having been told."""

    name: str
    texts: list[str]
    labels: list[str]


Task = Similarity | Retrieval | Classification | Clustering

WAY_OUT = "Fix the row: a task is measured whole or not at all."


def read_task(path: str | Path) -> Task:
    """A folder in BEIR layout as a Retrieval, a `.jsonl` file (plain or `.gz`) of scored pairs as a Similarity.

    Raises DataError with file and line for what cannot be used.
    """
    path = Path(path)
    if path.is_dir():
        return read_retrieval(path)
    if path.exists():
        return read_similarity(path)
    raise DataError(f"{path}: no such task. Expected a folder in BEIR layout or a .jsonl file of pairs with scores.")


def read_similarity(path: str | Path) -> Similarity:
    """Rows with "s1" and "s2" (or sentence1/sentence2, text1/text2) and a number in "score". Raises DataError."""
    path = Path(path)
    rows = read_rows(path, _pair, way_out=WAY_OUT)
    first, second, scores = zip(*rows, strict=True)
    if len(set(scores)) < 2:
        raise DataError(f"{path.name}: every score is {scores[0]:g}. Give pairs that differ in how alike they are.")
    return Similarity(f"{path.parent.name}/{path.name.split('.')[0]}", list(first), list(second), list(scores))


def read_classification(train: str | Path, test: str | Path) -> Classification:
    """Two files of rows with "text" and "label", which is a text or a whole number. Raises DataError.

    So it does where a label of `test` is in no row of `train`.
    """
    train, test = Path(train), Path(test)
    known, asked = _labelled(train), _labelled(test)
    if missing := sorted(set(asked[1]) - set(known[1])):
        raise DataError(f'{test.name}: the label "{missing[0]}" is in no row of {train.name}, so nobody can tell it.')
    return Classification(test.parent.name, *known, *asked)


def read_clustering(path: str | Path) -> Clustering:
    """Rows with "text" and "label", which is a text or a whole number. Raises DataError."""
    path = Path(path)
    return Clustering(f"{path.parent.name}/{path.name.split('.')[0]}", *_labelled(path))


def _labelled(path: Path) -> tuple[list[str], list[str]]:
    texts, labels = zip(*read_rows(path, _text_and_label, way_out=WAY_OUT), strict=True)
    if len(set(labels)) < 2:
        raise DataError(f'{path.name}: every label is "{labels[0]}". Give texts of at least two kinds.')
    return list(texts), list(labels)


def _text_and_label(row: Any) -> list[tuple[str, str]]:
    return [(field_text(row, "text"), row_id(row, "label"))]


def read_retrieval(folder: str | Path) -> Retrieval:
    """corpus.jsonl and queries.jsonl (`_id`, `title`, `text`), qrels.tsv or qrels/test.tsv, each plain or `.gz`.

    Relevance rows are query-id, document-id, score, by tabs, with or without a header; four columns are TREC's, whose
    second is ignored. Queries without a relevant document are left out, as they have no score.
    Raises DataError for a missing file, a bad row, or an id that stands in no file.
    """
    folder = Path(folder)
    documents = _documents(part(folder, CORPUS), may_be_empty=True)
    queries = _documents(part(folder, QUERIES))
    qrels = part(folder, "qrels.tsv", "qrels/test.tsv")
    texts = {document.id: document.text for document in documents}
    ids = {query.id for query in queries}
    relevance = by_query(read_judgements(qrels, ids, texts, may_be_empty=True, way_out=WAY_OUT))
    judged = [query for query in queries if any(score > 0 for score in relevance.get(query.id, {}).values())]
    if not judged:
        raise DataError(f"{folder}: no query has a relevant document in {qrels.name}.")
    return Retrieval(folder.resolve().name, judged, documents, relevance)


def _documents(path: Path, *, may_be_empty: bool = False) -> list[Document]:
    return read_rows(path, document_parser(may_be_empty=may_be_empty), numbered=True, way_out=WAY_OUT)


def _pair(row: Any) -> list[tuple[str, str, float]]:
    if not isinstance(row, Mapping):
        raise RowError('expected a JSON object with "s1", "s2" and "score".')
    first = field_text(row, "s1", "sentence1", "text1")
    second = field_text(row, "s2", "sentence2", "text2")
    _, score = row_field(row, "score", "label")
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise RowError(f'"score" is {score!r}, expected a number.')
    return [(first, second, float(score))]
