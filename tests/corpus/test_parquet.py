"""Contract of the folder: three columns, whole or not there, never overwritten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bothways.corpus import Corpus, embed, search
from bothways.corpus.fingerprint import encoder_fingerprint
from bothways.corpus.layout import read_manifest
from bothways.data import Document
from bothways.errors import ConfigError, DataError


class Letters:
    """A text's vector is how often it has an a, a b, a c."""

    def __init__(self, fails_on: str = "") -> None:
        self.fails_on, self.calls = fails_on, []

    def encode_document(self, texts: list[str], /) -> Any:
        self.calls.append(len(texts))
        if self.fails_on in texts:
            raise RuntimeError("the model broke")
        return np.array([[text.count(letter) for letter in "abc"] for text in texts])


DOCUMENTS = [Document("x", "aab"), Document("y", "bbb"), Document("z", "cä"), Document("w", "bbb")]


def test_texts_ids_and_vectors_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bothways.corpus.parquet.DOCUMENTS_AT_ONCE", 3)
    encoder = Letters()
    saved = tmp_path / "encoder"
    saved.mkdir()
    (saved / "model.safetensors").write_bytes(b"weights")
    (saved / "modules.json").write_text("[]")
    folder = embed(encoder, DOCUMENTS, tmp_path / "new" / "vectors", saved=saved)
    assert encoder.calls == [3, 1]
    assert sorted(item.name for item in folder.iterdir()) == ["corpus.json", "part-00000.parquet"]
    assert [item.name for item in folder.parent.iterdir()] == ["vectors"]
    columns = pq.ParquetFile(folder / "part-00000.parquet").read()
    assert columns.schema.names == ["id", "text", "vector"]
    assert columns.schema.field("vector").type == pa.list_(pa.float32(), 3)
    assert columns["text"].to_pylist() == ["aab", "bbb", "cä", "bbb"]
    assert columns["id"].to_pylist() == ["x", "y", "z", "w"]
    assert columns["vector"].to_pylist() == [[2, 1, 0], [0, 3, 0], [0, 0, 1], [0, 3, 0]]
    facts = json.loads(columns.schema.metadata[b"bothways"])
    assert facts == {"dim": 3, "precision": "float32", "fingerprint": encoder_fingerprint(saved)}
    manifest = read_manifest(folder)
    assert (manifest.encoder, manifest.dim, manifest.rows) == (str(saved), 3, 4)


def test_plain_texts_are_numbered(tmp_path: Path) -> None:
    embed(Letters(), ["ab", "c"], tmp_path / "out")
    assert Corpus.open(tmp_path / "out").ids == ["0", "1"]


def test_nothing_is_overwritten_and_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    embed(Letters(), DOCUMENTS, tmp_path / "empty")
    with pytest.raises(
        ConfigError, match=r"empty exists and is not empty\. Name another folder, .*nothing is overwritten"
    ):
        embed(Letters(), DOCUMENTS, tmp_path / "empty")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="file is a file, expected a folder to write to"):
        embed(Letters(), DOCUMENTS, tmp_path / "file")
    with pytest.raises(DataError, match="there is no document"):
        embed(Letters(), [], tmp_path / "other")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bothways.corpus.parquet.DOCUMENTS_AT_ONCE", 1)
    with pytest.raises(RuntimeError, match="the model broke"):
        embed(Letters(fails_on="cä"), DOCUMENTS, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_search_is_exact_and_ties_keep_the_order(tmp_path: Path) -> None:
    embed(Letters(), DOCUMENTS, tmp_path / "out")
    hits = search(tmp_path / "out", np.array([0.5, 1, 0], dtype=np.float32), 3)
    assert [(hit.id, hit.text, hit.score) for hit in hits] == [("y", "bbb", 3.0), ("w", "bbb", 3.0), ("x", "aab", 2.0)]
    assert len(search(tmp_path / "out", np.ones(3, dtype=np.float32), 99)) == 4
    with pytest.raises(DataError, match=r"the vector has shape \(5,\), but the corpus has \(3,\)"):
        search(tmp_path / "out", np.ones(5, dtype=np.float32))
    with pytest.raises(DataError, match=r"corpus\.json is missing"):
        search(tmp_path, np.ones(3, dtype=np.float32))
