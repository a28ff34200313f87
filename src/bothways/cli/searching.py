"""`bothways index DIR` and `bothways search DIR "query"`: questions to what was encoded."""

from __future__ import annotations

import json as notation
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from bothways.cli.options import Opening, misused, open_encoder, quiet, say
from bothways.corpus.index import Index

if TYPE_CHECKING:
    from bothways.corpus.searching import Hit


def index(folder: Positional[Path], settings: OmitArgPrefixes[Index], overwrite: bool = False) -> None:
    """Index a folder of vectors, so that `bothways search` is quick in a large one.

    Args:
        folder: What `bothways encode` or the demo wrote; the index is its sub-folder "index".
        overwrite: Make an index that is there anew; it stays until the new one is complete.
    """
    from bothways.corpus.index import build_index

    indexed = build_index(folder, settings, overwrite=overwrite, tell=lambda line: say(f"index: {line}"))
    if indexed.probing is None:
        say(f"index: {indexed.rows:,} vectors, all of them are compared at a search")
        return
    probing = indexed.probing
    say(
        f"index: {indexed.rows:,} vectors, {indexed.index_type} of {indexed.num_partitions:,} partitions, searched "
        f"with nprobes={probing.nprobes} and refine_factor={probing.refine_factor}"
    )
    missed = "" if indexed.reached else ": want a little more of it, or take another --index-type"
    say(
        f"index: recall@10 {indexed.recall:.3f} on {indexed.sample} rows of the corpus, each but for itself; "
        f"{indexed.wanted:g} was wanted{missed}"
    )


def search(
    folder: Positional[Path],
    query: Positional[tuple[str, ...]],
    opening: OmitArgPrefixes[Opening],
    k: Annotated[int, arg(aliases=("-k",))] = 10,
    queries: Path | None = None,
    where: str | None = None,
    columns: tuple[str, ...] = (),
    encoder: str | None = None,
    instruction: str | None = None,
    json: bool = False,
) -> None:
    """Find the documents of an encoded corpus that are nearest to questions.

    Args:
        folder: What `bothways encode` or the demo wrote.
        query: The questions.
        k: Documents for each of them.
        queries: File with more questions: .txt, .jsonl of strings or with "text", .csv, .tsv or .parquet.
        where: Condition on id, text and other columns, in SQL: "year > 2000 AND lang = 'en'".
        columns: Other columns to show, with commas or spaces between: title,year.
        encoder: Where the encoder is, if it is no longer where it was when the corpus was encoded.
        instruction: What stands before each question, instead of the encoder's own prompt for queries.
        json: Print one JSON object a line for each document, instead of tables.
    """
    if not query and queries is None:
        misused("search: no question. Give one behind the folder, or --queries FILE.")
    from bothways.corpus.searching import Searcher
    from bothways.data import read_texts

    asked = [*query, *([] if queries is None else read_texts(queries))]
    quiet()
    searcher = Searcher.open(folder, encoder, load=lambda name: open_encoder(name, opening))
    say(f"search: {searcher.described}")
    shown = [name.strip() for name in ",".join(columns).split(",") if name.strip()]
    found = searcher.search(asked, k, where=where, columns=shown, instruction=instruction)
    for question, hits in zip(asked, found, strict=True):
        if json:
            _lines(question, hits)
        else:
            _table(question, hits)


def _lines(question: str, hits: list[Hit]) -> None:
    for rank, hit in enumerate(hits, 1):
        row = {"query": question, "rank": rank, "id": hit.id, "score": hit.score, "text": hit.text}
        # What JSON has no kind for, such as a date, is written as its text.
        print(notation.dumps(row | {"columns": dict(hit.columns)}, ensure_ascii=False, default=str))


def _table(question: str, hits: list[Hit]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from bothways.cli import tables

    shown = Table(title=escape(question), title_justify="left")
    shown.add_column("score", justify="right")
    for name in ("id", *(hits[0].columns if hits else ())):
        shown.add_column(escape(name), overflow="fold")
    with_text = any(hit.text is not None for hit in hits)
    if with_text:
        shown.add_column("text", no_wrap=True, overflow="ellipsis", ratio=1)
    for hit in hits:
        cells = [f"{hit.score:.3f}", hit.id, *map(str, hit.columns.values())]
        cells += [" ".join((hit.text or "").split())] if with_text else []
        shown.add_row(*map(escape, cells))
    if not hits:
        shown.add_column("nothing was found")
    tables.console().print(shown)
