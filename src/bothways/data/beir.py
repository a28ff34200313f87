"""Folders in BEIR layout: a corpus, queries, and how well some documents answer some queries."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bothways.data.formats import raw_rows
from bothways.data.reading import WAY_OUT, OnBadRow, Origin, Rows, read_rows
from bothways.data.rows import Document, Example, RowError, document_parser
from bothways.data.sources import SPLIT, Source
from bothways.errors import DataError

CORPUS, QUERIES, QRELS = "corpus.jsonl", "queries.jsonl", "qrels"


class Judgement(NamedTuple):
    """How well a document answers a query; 0 and less: not at all."""

    query: str
    document: str
    grade: int


def is_beir(folder: Path) -> bool:
    """Whether a folder has the three parts."""
    qrels = (folder / QRELS).is_dir() or _there(folder, f"{QRELS}.tsv")
    return qrels and _there(folder, CORPUS) and _there(folder, QUERIES)


def part(folder: Path, *names: str) -> Path:
    """The first of some files that is there, plain or `.gz`. Raises DataError if none is."""
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    wanted = " or ".join(names)
    raise DataError(f"{folder}: {wanted} (plain or .gz) is missing. BEIR layout has a corpus, queries and qrels.")


def read_judgements(
    path: Path,
    queries: Collection[str],
    documents: Mapping[str, str],
    on_bad_row: OnBadRow = "raise",
    *,
    may_be_empty: bool = False,
    way_out: str = WAY_OUT,
) -> Rows[Judgement]:
    """Rows of query-id, document-id and grade, by tabs, with or without a header; of four columns the second is left.

    Raises DataError with file and line for an id that is not among `queries` or `documents` (texts by id), and, unless
    it `may_be_empty`, for a document without a text.
    """

    def parse(row: str, line: int) -> Iterator[Judgement]:
        query, document, grade = _cells(row)
        if line == 1 and query not in queries and not _is_whole(grade):
            return
        if not _is_whole(grade):
            raise RowError(f'the score "{grade}" is not a whole number.')
        if query not in queries:
            raise RowError(f'the query "{query}" is not in {QUERIES}.')
        if document not in documents:
            raise RowError(f'the document "{document}" is not in {CORPUS}.')
        if not may_be_empty and not documents[document]:
            raise RowError(f'the document "{document}" is empty.')
        yield Judgement(query, document, int(grade))

    return read_rows(path, parse, on_bad_row, suffixes=(".tsv",), numbered=True, as_lines=True, way_out=way_out)


def by_query(judgements: Iterable[Judgement]) -> dict[str, dict[str, int]]:
    """The grades of documents, by query. Of what is judged twice the last one counts."""
    grades: dict[str, dict[str, int]] = {}
    for query, document, grade in judgements:
        grades.setdefault(query, {})[document] = grade
    return grades


def read_beir(source: Source, on_bad_row: OnBadRow = "raise") -> Rows[Example]:
    """An example for every document that answers a query; those that are judged not to are its negatives.

    Reads qrels/train.tsv, or qrels.tsv where there is one file, unless the source names another split. Of the corpus
    the documents that are judged are held in memory. Raises DataError with file and line.
    """
    folder = Path(source.path)
    qrels = _qrels(folder, source.split)
    queries = read_rows(part(folder, QUERIES), document_parser(), on_bad_row, numbered=True)
    corpus = read_rows(part(folder, CORPUS), _only(_judged(qrels)), on_bad_row, numbered=True)
    documents = {document.id: document.text for document in corpus if document}
    judgements = read_judgements(qrels, {query.id for query in queries}, documents, on_bad_row)
    grades = by_query(judgements)
    rows = [example for query in queries for example in _examples(query, grades.get(query.id, {}), documents, source)]
    if not rows:
        raise DataError(f"{folder}: no query has a relevant document in {qrels.name}. Name another split.")
    skipped = [*queries.skipped, *corpus.skipped, *judgements.skipped]
    return Rows(rows, skipped, [Origin(source.name, source.weight, len(rows), len(skipped), source.policy)])


def _examples(
    query: Document, grades: Mapping[str, int], documents: Mapping[str, str], source: Source
) -> Iterator[Example]:
    negatives = tuple(documents[document] for document, grade in grades.items() if grade <= 0)
    for document, grade in grades.items():
        if grade > 0:
            instructions = source.query_instruction, source.document_instruction
            yield Example(query.text, documents[document], negatives, *instructions)


def _qrels(folder: Path, split: str | None) -> Path:
    names = [f"{QRELS}/{split or SPLIT}.tsv"] + ([] if split else [f"{QRELS}.tsv"])
    splits = sorted({path.name.split(".")[0] for path in (folder / QRELS).glob("*.tsv*")})
    if splits and not any(_there(folder, name) for name in names):
        raise DataError(
            f"{folder}: {names[0]} is missing; of qrels there are {', '.join(splits)}. Name one of them: "
            f"format=beir and split={splits[0]}."
        )
    return part(folder, *names)


def _judged(qrels: Path) -> set[str]:
    """The documents that are named in a file; what is wrong in it is found when it is read."""
    named = set()
    for raw in raw_rows(qrels, ".txt"):
        try:
            named.add(_cells(raw.value)[1])
        except RowError:
            continue
    return named


def _only(wanted: Collection[str]) -> Callable[[Any, int], list[Document | None]]:
    """Parses documents, and keeps nothing in memory of those that are not wanted."""
    parse = document_parser(may_be_empty=True)
    return lambda row, number: [document if document.id in wanted else None for document in parse(row, number)]


def _cells(row: Any) -> tuple[str, str, str]:
    if isinstance(row, RowError):
        raise row
    cells = row.split("\t") if "\t" in row else row.split()
    if len(cells) == 4:
        del cells[1]
    if len(cells) != 3:
        raise RowError(f"expected query-id, document-id and score, found {len(cells)} columns.")
    query, document, grade = (cell.strip() for cell in cells)
    return query, document, grade


def _there(folder: Path, name: str) -> bool:
    return (folder / name).is_file() or (folder / f"{name}.gz").is_file()


def _is_whole(text: str) -> bool:
    return text.removeprefix("-").isdigit()
