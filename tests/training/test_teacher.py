"""Contract: a teacher's vectors come in the order of the texts, from a folder or a file, and nothing is made up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from bothways import convert
from bothways.errors import ConfigError, DataError
from bothways.training.teacher import Teacher, procrustes, unit

TEXTS = ["one", "two", "three", "one", "four"]


def stored(path: Path, vectors: dict[str, list[float]]) -> Path:
    pq.write_table(pa.table({"text": list(vectors), "vector": list(vectors.values())}), path)
    return path


def test_stored_vectors_come_in_the_order_of_the_texts(tmp_path: Path) -> None:
    vectors = {text: [float(len(text)), float(number), 0.5] for number, text in enumerate([*TEXTS[:3], "four", "six"])}
    taught = Teacher(stored(tmp_path / "v.parquet", vectors)).teach(TEXTS)
    assert taught.vectors.dtype == np.float32
    np.testing.assert_array_equal(taught.vectors, [vectors[text] for text in TEXTS])
    again = Teacher(stored(tmp_path / "w.parquet", {**vectors, "two": [9.0, 9.0, 9.0]})).teach(TEXTS)
    assert again.fingerprint != taught.fingerprint


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ({"one": [1.0]}, r'v\.parquet: 3 of 4 texts have no vector there, the first of them "two"\. Store theirs'),
        ({"one": [1.0], "two": [1.0, 2.0]}, r"v\.parquet row 2: a vector of 2 numbers, expected 1\."),
        ({key: [float("nan")] for key in TEXTS}, r'v\.parquet: its vector of "one" is not finite\.'),
    ],
)
def test_what_is_wrong_with_stored_vectors_is_named(
    tmp_path: Path, vectors: dict[str, list[float]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Teacher(stored(tmp_path / "v.parquet", vectors)).teach(TEXTS)


def test_columns_files_and_folders_that_are_not_there(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["one"], "vector": [[1.0]]}), tmp_path / "v.parquet")
    with pytest.raises(DataError, match=r'v\.parquet: there is no column "text"; it has "body", "vector"\.'):
        Teacher(tmp_path / "v.parquet").teach(TEXTS)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"broken\.parquet: not a whole Parquet file"):
        Teacher(tmp_path / "broken.parquet").teach(TEXTS)
    with pytest.raises(ConfigError, match=r"gone\.parquet: no such file\. Name a \.parquet file"):
        Teacher(tmp_path / "gone.parquet").teach(TEXTS)


def test_a_folder_teaches_what_its_encoder_gives_with_its_own_prompts(tmp_path: Path, tiny_llama_folder: Path) -> None:
    pytest.importorskip("sentence_transformers")
    encoder = convert(tiny_llama_folder, dtype="float32", device="cpu")
    encoder.settings = replace(encoder.settings, prompts={"query": "Find it: "})
    encoder.save_pretrained(tmp_path / "teacher")
    taught = Teacher(tmp_path / "teacher", device="cpu").teach(TEXTS)
    np.testing.assert_allclose(taught.vectors, encoder.encode(TEXTS), atol=1e-5)
    asked = Teacher(tmp_path / "teacher", device="cpu").teach(TEXTS, "query")
    np.testing.assert_allclose(asked.vectors, encoder.encode_query(TEXTS), atol=1e-5)
    assert np.abs(asked.vectors - taught.vectors).max() > 1e-3
    with pytest.raises(ConfigError, match=r"nowhere: cannot be opened as a teacher"):
        Teacher(tmp_path / "nowhere", device="cpu").teach(TEXTS)


def cosines(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return unit(vectors) @ unit(vectors).T


def test_a_projection_into_more_dimensions_keeps_every_cosine_and_turns_towards_the_student() -> None:
    random = np.random.default_rng(0)
    teacher, student = (random.normal(size=(40, dim)).astype(np.float32) for dim in (5, 9))
    found = procrustes(teacher, student)
    assert found.shape == (5, 9)
    np.testing.assert_allclose(cosines(teacher @ found), cosines(teacher), atol=1e-5)
    near = (unit(teacher @ found) * unit(student)).sum(axis=1).mean()
    other = np.linalg.qr(random.normal(size=(9, 5)))[0].T.astype(np.float32)
    assert near > (unit(teacher @ other) * unit(student)).sum(axis=1).mean()
    turned = np.linalg.qr(random.normal(size=(5, 5)))[0].astype(np.float32)
    np.testing.assert_allclose(procrustes(teacher @ turned, teacher), turned.T, atol=1e-4)


def test_a_projection_into_fewer_dimensions_has_orthonormal_columns() -> None:
    random = np.random.default_rng(1)
    found = procrustes(*(random.normal(size=(40, dim)).astype(np.float32) for dim in (9, 4)))
    np.testing.assert_allclose(found.T @ found, np.eye(4), atol=1e-5)
