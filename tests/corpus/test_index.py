"""Property and contract: the recall that is said is the recall; an index is whole, never stale, never overwritten."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import written

from bothways.corpus.index import Index, Indexed, build_index
from bothways.corpus.layout import read_manifest
from bothways.corpus.searching import Searcher
from bothways.corpus.table import Probing
from bothways.errors import ConfigError, DataError

pytest.importorskip("lancedb")

ROWS, DIM = 2003, 24


class Unused:
    """Vectors are asked for, not texts."""

    def encode(self, texts: list[str], /, *, instruction: object) -> object:
        raise AssertionError

    def encode_query(self, texts: list[str], /) -> object:
        raise AssertionError


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """Clusters, some of whose vectors stand there twice."""
    draw = np.random.default_rng(0)
    found = draw.standard_normal((17, DIM))[draw.integers(0, 17, ROWS)] + 0.6 * draw.standard_normal((ROWS, DIM))
    found[1000:1100] = found[:100]
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def similarity(vectors: np.ndarray, precision: str) -> np.ndarray:
    if precision == "ubinary":
        bits = vectors > 0
        return np.stack([(bits == one).mean(axis=1) for one in bits])
    stored = written.rounded(vectors, precision).astype(float)
    stored /= np.linalg.norm(stored, axis=1, keepdims=True)
    return stored @ stored.T


@pytest.mark.parametrize(
    ("precision", "index_type"),
    [("float32", "IVF_SQ"), ("float32", "IVF_PQ"), ("float16", "IVF_HNSW_SQ"), ("int8", "IVF_SQ"), ("ubinary", "")],
)
def test_the_recall_that_is_said_is_the_recall(
    tmp_path: Path, vectors: np.ndarray, precision: str, index_type: str
) -> None:
    written.corpus(tmp_path / "corpus", vectors, precision, rows_of_part=700)
    options = {"index_type": index_type} if index_type else {}
    settings = Index(kind="ann", num_partitions=7, sample=60, recall=0.9, seed=3, **options)
    said: list[str] = []
    indexed = build_index(tmp_path / "corpus", settings, tell=said.append)
    assert said[0] == "2,003 rows are written to a LanceDB table"
    assert indexed == Indexed.read(tmp_path / "corpus")
    assert (indexed.index_type, indexed.kind) == (index_type or "IVF_FLAT", "ann")
    # The same rows, asked through the front door and judged by numpy.
    rows = np.random.default_rng(3).choice(ROWS, 120, replace=False)[60:]
    truth = similarity(vectors, precision)
    searcher = Searcher.open(tmp_path / "corpus", Unused())
    found = 0
    for row, hits in zip(rows, searcher.search_vectors(vectors[rows], 11), strict=True):
        others = np.delete(truth[row], row)
        lowest = np.sort(others)[-10]
        names = [int(hit.id[1:]) for hit in hits if hit.id != f"d{row}"][:10]
        found += sum(truth[row, name] >= lowest - 1e-6 for name in names)
        np.testing.assert_allclose(
            [hit.score for hit in hits], truth[row, [int(hit.id[1:]) for hit in hits]], atol=1e-5
        )
    assert indexed.recall == pytest.approx(found / 600)
    # Partitions are drawn anew each time; of 600 neighbours of rows that tuned nothing some more may be missed.
    assert indexed.recall >= 0.85
    assert indexed.sample == 60
    assert indexed.reached == (indexed.recall >= 0.9)
    assert 1 <= indexed.probing.nprobes <= 7
    assert searcher.described == f"2,003 vectors, {indexed.index_type} of measured recall@10 {indexed.recall:.3f}"


def test_a_narrow_filter_still_finds_k_rows_in_an_ann_index(tmp_path: Path, vectors: np.ndarray) -> None:
    columns = {"lang": ["rare" if row % 190 == 0 else "usual" for row in range(ROWS)], "spare": range(ROWS)}
    written.corpus(tmp_path / "corpus", vectors, columns=columns)
    build_index(
        tmp_path / "corpus",
        Index(kind="ann", num_partitions=16, sample=20, recall=0.01, filters=("lang",), columns=("lang",)),
    )
    searcher = Searcher.open(tmp_path / "corpus", Unused())
    assert searcher.indexed.probing == Probing(1, 1)
    hits = searcher.search_vectors(vectors[:1], 9, where="lang = 'rare'")[0]
    rare = range(0, ROWS, 190)
    best = sorted(rare, key=lambda row: -float(vectors[row] @ vectors[0]))[:9]
    assert [hit.id for hit in hits] == [f"d{row}" for row in best]
    # One partition has not so many rows.
    assert len(searcher.search_vectors(vectors[:1], 999)[0]) == 999
    assert searcher.columns == ("lang",)
    with pytest.raises(ConfigError, match=r'no column "spare"\. Known: lang'):
        searcher.search_vectors(vectors[:1], columns=["spare"])


def test_what_is_wanted_decides_how_far_is_searched(tmp_path: Path) -> None:
    # Without clusters, neighbours are spread over the partitions.
    written.corpus(tmp_path / "corpus", np.random.default_rng(1).standard_normal((ROWS, DIM)))
    settings = Index(kind="ann", num_partitions=16, sample=40, recall=0.3)
    little = build_index(tmp_path / "corpus", settings)
    much = build_index(tmp_path / "corpus", replace(settings, recall=1.0), overwrite=True)
    assert much.probing.nprobes > little.probing.nprobes
    assert much.recall > little.recall


def test_few_rows_are_compared_exactly_and_many_are_not(tmp_path: Path, vectors: np.ndarray) -> None:
    written.corpus(tmp_path / "corpus", vectors)
    exact = build_index(tmp_path / "corpus", Index(exact_rows=ROWS))
    assert (exact.kind, exact.probing, exact.rows) == ("exact", None, ROWS)
    searcher = Searcher.open(tmp_path / "corpus", Unused())
    assert searcher.described == "2,003 vectors, an exact index: all are compared"
    hits = searcher.search_vectors(vectors[7:8], 5)[0]
    assert [int(hit.id[1:]) for hit in hits] == np.argsort(-vectors @ vectors[7], kind="stable")[:5].tolist()
    ann = build_index(tmp_path / "corpus", Index(exact_rows=ROWS - 1, sample=10), overwrite=True)
    assert (ann.kind, ann.num_partitions) == ("ann", 1)


def test_an_index_is_not_overwritten_and_a_failure_leaves_the_old_one(
    tmp_path: Path, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "corpus"
    written.corpus(folder, vectors[:300])
    first = build_index(folder)
    with pytest.raises(ConfigError, match=r"index exists and is not empty\. Make it anew with --overwrite: bothways"):
        build_index(folder)
    (folder / "part-0.parquet").rename(folder / "elsewhere")
    with pytest.raises(DataError, match=r"part-0\.parquet is missing"):
        build_index(folder, overwrite=True)
    (folder / "elsewhere").rename(folder / "part-0.parquet")

    def breaks(*_: object) -> None:
        raise RuntimeError("the disk broke")

    monkeypatch.setattr("bothways.corpus.index.corpus_fingerprint", breaks)
    with pytest.raises(RuntimeError, match="the disk broke"):
        build_index(folder, overwrite=True)
    assert Indexed.read(folder) == first
    assert sorted(item.name for item in folder.iterdir()) == ["corpus.json", "index", "part-0.parquet"]


def test_an_index_of_other_vectors_is_refused(tmp_path: Path, vectors: np.ndarray) -> None:
    folder = tmp_path / "corpus"
    written.corpus(folder, vectors[:300])
    build_index(folder)
    (folder / "index").rename(tmp_path / "index")
    (folder / "corpus.json").rename(tmp_path / "corpus.json")
    written.corpus(tmp_path / "other", vectors[300:600])
    (tmp_path / "index").rename(tmp_path / "other" / "index")
    with pytest.raises(
        DataError, match=r"its vectors are others than those that were indexed\. .*index .* --overwrite"
    ):
        Searcher.open(tmp_path / "other", Unused())
    build_index(tmp_path / "other", overwrite=True)
    assert Searcher.open(tmp_path / "other", Unused()).search_vectors(vectors[301:302], 1)[0][0].id == "d1"
    moved = (tmp_path / "other").rename(tmp_path / "moved")
    assert Searcher.open(moved, Unused()).search_vectors(vectors[302:303], 1)[0][0].id == "d2"


def test_an_index_that_cannot_be_read_is_said(tmp_path: Path, vectors: np.ndarray) -> None:
    written.corpus(tmp_path / "corpus", vectors[:300])
    assert Indexed.read(tmp_path / "corpus") is None
    build_index(tmp_path / "corpus")
    path = tmp_path / "corpus" / "index" / "index.json"
    content = json.loads(path.read_text())
    for text in ("{", json.dumps(content | {"later": 1}), None):
        path.unlink() if text is None else path.write_text(text)
        with pytest.raises(DataError, match=r"index: no index of this version .* Make it again: bothways index"):
            Searcher.open(tmp_path / "corpus", Unused())


def test_settings_are_checked(tmp_path: Path, vectors: np.ndarray) -> None:
    with pytest.raises(ConfigError, match=r"Index\(recall=1\.5\): expected a share"):
        Index(recall=1.5)
    with pytest.raises(ConfigError, match=r"Index\(num_partitions=0\): expected 1 or more"):
        Index(num_partitions=0)
    folder = tmp_path / "corpus"
    written.corpus(folder, vectors[:257], columns={"year": range(257)})
    for settings, said in [
        (Index(filters=("yaer",)), r'index: filters: the corpus has no column "yaer"\. Did you mean "year"'),
        (Index(columns=("titel",)), r'index: columns: the corpus has no column "titel"\. Known: year'),
        (Index(columns=(), filters=("year",)), r'index: filters: the corpus has no column "year"\. Known: id, text'),
        (Index(kind="ann", index_type="IVF_PQ", num_sub_vectors=5), r"does not divide the vectors' 24 numbers"),
        (Index(kind="ann", num_sub_vectors=5), r"num_sub_vectors=5\): IVF_PQ alone has them"),
    ]:
        with pytest.raises(ConfigError, match=said):
            build_index(folder, settings)
    written.corpus(tmp_path / "small", vectors[:255])
    with pytest.raises(ConfigError, match=r'Index\(kind="ann"\) of 255 rows: LanceDB trains on 256 or more'):
        build_index(tmp_path / "small", Index(kind="ann"))
    replace(read_manifest(folder), complete=False).write(folder)
    with pytest.raises(DataError, match="not finished, 257 vectors so far"):
        build_index(folder)
    assert not (folder / "index").exists()
