"""Parity and contract: exact search is numpy's at every precision; filters; what does not fit is said."""

from __future__ import annotations

import gc
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import written

from bothways.corpus.layout import read_manifest
from bothways.corpus.searching import Hit, Searcher
from bothways.errors import ConfigError, DataError

pytest.importorskip("lancedb")

ROWS, DIM = 333, 21


class Letters:
    """Vectors that are looked up; says what was asked of it."""

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors, self.asked = vectors, []

    def encode(self, texts: list[str], /, *, instruction: Any) -> Any:
        self.asked.append((texts, instruction))
        return self.vectors[: len(texts)]

    def encode_query(self, texts: list[str], /) -> Any:
        return self.encode(texts, instruction="the stored prompt")


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((ROWS, DIM)).astype(np.float32)


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((5, DIM)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path, vectors: np.ndarray) -> Path:
    columns = {
        "year": [1900 + row % 101 for row in range(ROWS)],
        "lang": [("en", "de", "it's")[row % 3] for row in range(ROWS)],
        "my title": [f"title {row}" for row in range(ROWS)],
    }
    written.corpus(tmp_path / "corpus", vectors, columns=columns, rows_of_part=100)
    return tmp_path / "corpus"


def brute(vectors: np.ndarray, queries: np.ndarray, precision: str) -> np.ndarray:
    """Scores by the plainest numpy, in float64."""
    first, second = (written.rounded(each, precision).astype(float) for each in (queries, vectors))
    if precision in ("binary", "ubinary"):
        bits = [each[:, :] > 0 for each in (queries, vectors)]
        return (bits[0][:, None] == bits[1][None]).mean(axis=2)
    if precision == "uint8":
        first, second = first - 128, second - 128
    first, second = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (first, second))
    return first @ second.T


@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "uint8", "binary", "ubinary"])
def test_search_is_exact_at_every_precision(
    tmp_path: Path, vectors: np.ndarray, queries: np.ndarray, precision: str
) -> None:
    written.corpus(tmp_path / "corpus", vectors, precision, rows_of_part=100)
    found = Searcher.open(tmp_path / "corpus", Letters(queries)).search(list("abcde"), 7)
    truth = brute(vectors, queries, precision)
    assert len(found) == 5
    for hits, scores in zip(found, truth, strict=True):
        np.testing.assert_allclose([hit.score for hit in hits], np.sort(scores)[::-1][:7], atol=1e-6)
        np.testing.assert_allclose([hit.score for hit in hits], [scores[int(hit.id[1:])] for hit in hits], atol=1e-6)
        assert len({hit.id for hit in hits}) == 7
        assert [hit.text for hit in hits] == [f"text {hit.id[1:]}" for hit in hits]
        # Fewer bits than rows: many are equal, and of those the earlier comes first.
        assert hits == sorted(hits, key=lambda hit: (-hit.score, int(hit.id[1:])))


def test_a_filter_is_applied_before_the_nearest_are_chosen(
    folder: Path, vectors: np.ndarray, queries: np.ndarray
) -> None:
    searcher = Searcher.open(folder, Letters(queries))
    hits = searcher.search(["a"], 4, where="year > 1990 AND lang = 'it''s'", columns=["year", "my title"])[0]
    allowed = [row for row in range(ROWS) if row % 101 > 90 and row % 3 == 2]
    scores = brute(vectors, queries[:1], "float32")[0]
    best = sorted(allowed, key=lambda row: -scores[row])[:4]
    assert [hit.id for hit in hits] == [f"d{row}" for row in best]
    assert [hit.columns for hit in hits] == [{"year": 1900 + row % 101, "my title": f"title {row}"} for row in best]
    assert [hit.id for hit in searcher.search(["a"], where="`my title` = 'title 7'")[0]] == ["d7"]
    assert [hit.id for hit in searcher.search(["a"], where="id IN ('d3', 'd4') AND text LIKE '%3'")[0]] == ["d3"]
    assert searcher.search(["a"], where="year > 3000") == [[]]
    assert len(searcher.search(["a"], 999)[0]) == ROWS


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("yaer > 3", 'the corpus has no column "yaer". Did you mean "year"?'),
        ("zzz9 > 3", 'the corpus has no column "zzz9". Known: id, text, year, lang, my title.'),
        ("lang = 'it's'", "Unterminated string literal"),
        ("lang = 'en", "Unterminated string literal"),
        ("year > 3; DROP TABLE vectors", "it goes on where the condition has ended. Expected such as: year > 2000"),
        ("year > 3) OR (1 = 1", "it goes on where the condition has ended"),
        ("year > 3 lang", "it goes on where the condition has ended"),
        ("year > 3)", "it goes on where the condition has ended"),
        ("year > 'x'", "could not convert to literal of type 'Int64'"),
        ("year", "does not return a boolean. Expected such as: year > 2000 AND lang = 'en'."),
        (" ", "Expected: an expression"),
        ("nope(year)", "Invalid function 'nope'"),
    ],
)
def test_what_is_no_filter_is_said(folder: Path, queries: np.ndarray, where: str, reason: str) -> None:
    searcher = Searcher.open(folder, Letters(queries))
    with pytest.raises(ConfigError) as caught:
        searcher.search(["a"], where=where)
    said = str(caught.value)
    assert said.startswith(f'where "{where}": ')
    assert reason in said
    assert "cargo" not in said
    assert "CAST" not in said
    assert len(searcher.search(["a"])[0]) == 10


def test_queries_go_through_the_encoder_once(folder: Path, queries: np.ndarray) -> None:
    encoder = Letters(queries)
    searcher = Searcher.open(folder, encoder)
    assert searcher.search(["a", "b"], 3) == searcher.search_vectors(queries[:2], 3)
    searcher.search(["c"], instruction="Find it")
    assert encoder.asked == [(["a", "b"], "the stored prompt"), (["c"], "Find it")]
    assert searcher.search([]) == []


def test_the_first_numbers_of_a_query_are_enough(tmp_path: Path, vectors: np.ndarray, queries: np.ndarray) -> None:
    written.corpus(tmp_path / "short", vectors[:, :13])
    found = Searcher.open(tmp_path / "short", Letters(queries)).search(["a"], 1)[0][0]
    scores = brute(vectors[:, :13], queries[:1, :13], "float32")[0]
    assert found.id == f"d{scores.argmax()}"
    assert found.score == pytest.approx(scores.max(), abs=1e-6)
    written.corpus(tmp_path / "long", np.ones((2, DIM + 1), np.float32))
    with pytest.raises(DataError, match=r"has 21 numbers, but the corpus has 22\. Use its encoder"):
        Searcher.open(tmp_path / "long", Letters(queries)).search(["a"])


@pytest.mark.usefixtures("unchecked")
def test_what_is_asked_is_checked_before_anything_is_encoded(folder: Path) -> None:
    encoder = Letters(np.zeros((0, DIM)))
    searcher = Searcher.open(folder, encoder)
    with pytest.raises(ConfigError, match=r"search: k=0, expected 1 or more"):
        searcher.search(["a"], 0)
    with pytest.raises(DataError, match=r"search: queries\[1\] is empty"):
        searcher.search(["a", " "])
    with pytest.raises(ConfigError, match=r'search: columns: the corpus has no column "titel". Did you mean'):
        searcher.search(["a"], columns=["titel"])
    with pytest.raises(ConfigError, match=r"queries is the text 'why'\. Pass a list"):
        searcher.search("why")
    assert encoder.asked == []


def test_a_corpus_without_texts_and_columns(tmp_path: Path, queries: np.ndarray) -> None:
    manifest = written.corpus(tmp_path / "corpus", np.eye(DIM, dtype=np.float32))
    replace(manifest, texts=False).write(tmp_path / "corpus")
    searcher = Searcher.open(tmp_path / "corpus", Letters(np.eye(DIM, dtype=np.float32)))
    assert searcher.search(["a"], 1) == [[Hit("d0", 1.0)]]
    with pytest.raises(ConfigError, match=r'no column "year"\. It has none beside id and text'):
        searcher.search(["a"], columns=["year"])
    with pytest.raises(ConfigError, match=r'no column "text"\. Known: id'):
        searcher.search(["a"], where="text = 'a'")


def test_the_temporary_table_goes_with_the_searcher(
    folder: Path, queries: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    before = sorted(folder.iterdir())
    searcher = Searcher.open(folder, Letters(queries))
    assert searcher.described == "333 vectors, no index: all are compared"
    assert len(list((tmp_path / "tmp").iterdir())) == 1
    assert sorted(folder.iterdir()) == before
    del searcher
    gc.collect()
    assert list((tmp_path / "tmp").iterdir()) == []
    (folder / "part-3.parquet").unlink()
    with pytest.raises(DataError, match=r"part-3\.parquet is missing"):
        Searcher.open(folder, Letters(queries))
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_large_corpus_without_an_index_says_what_to_do(
    folder: Path, queries: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bothways.corpus.searching.EXACT_ROWS", 300)
    with pytest.raises(DataError, match=r"333 vectors and no index; .* 300 are searched\. Make it: bothways index"):
        Searcher.open(folder, Letters(queries))


def test_what_is_no_finished_corpus_is_said(folder: Path, tmp_path: Path, queries: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"corpus\.json is missing, so this is no folder of vectors"):
        Searcher.open(tmp_path, Letters(queries))
    manifest = read_manifest(folder)
    replace(manifest, complete=False).write(folder)
    with pytest.raises(DataError, match="not finished, 333 vectors so far"):
        Searcher.open(folder, Letters(queries))
    replace(manifest, parts=()).write(folder)
    with pytest.raises(DataError, match="no vector is in it"):
        Searcher.open(folder, Letters(queries))
    replace(manifest, parts=(replace(manifest.parts[0], rows=99), *manifest.parts[1:])).write(folder)
    with pytest.raises(DataError, match="333 rows are in its parts, its manifest says 332"):
        Searcher.open(folder, Letters(queries))


def test_parts_that_do_not_fit_together_are_said(folder: Path, queries: np.ndarray) -> None:
    path = folder / "part-2.parquet"
    table = pq.read_table(path)
    years = table.schema.get_field_index("year")
    pq.write_table(table.set_column(years, "year", table["year"].cast("float64")), path)
    with pytest.raises(
        DataError,
        match=r'column "year" is double in part-2\.parquet, int64 before\. Index the others \(bothways index .* --',
    ):
        Searcher.open(folder, Letters(queries))
    pq.write_table(table.drop_columns(["id"]), path)
    with pytest.raises(
        DataError, match=r'column "id" is missing in part-2\.parquet, string before\. Encode the corpus again'
    ):
        Searcher.open(folder, Letters(queries))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"part-2\.parquet cannot be read \(.*\)\. Encode the corpus again"):
        Searcher.open(folder, Letters(queries))


@pytest.mark.parametrize("name", ["a.b", "_row", "_distance"])
def test_a_column_that_lancedb_does_not_allow_is_named(tmp_path: Path, queries: np.ndarray, name: str) -> None:
    written.corpus(tmp_path / "corpus", np.eye(DIM, dtype=np.float32), columns={name: range(DIM)})
    with pytest.raises(
        ConfigError, match=re.escape(f'LanceDB allows no column called "{name}". Name the others: bothways index')
    ):
        Searcher.open(tmp_path / "corpus", Letters(queries))
