"""What a student learns from: a sentence-transformers folder, or vectors that were stored with their texts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from bothways.artefact import brings_our_module
from bothways.errors import ConfigError, DataError

Side = Literal["text", "query", "document"]
TEXT, VECTOR = "text", "vector"
"""Columns of stored vectors."""
ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Taught:
    """Vectors of some texts, one row each, and what they are told apart by."""

    vectors: Float[np.ndarray, "texts dim"]
    fingerprint: str


class Teacher:
    """Texts -> vectors; opened once for all texts of a stage.

    It is a `.parquet` file with the columns "text" and "vector", or a folder (or hub id) of sentence-transformers,
    whose own prompts for queries and documents are used. Raises ConfigError for a teacher that is not there.
    """

    def __init__(self, name: str | Path, *, device: str | None = None) -> None:
        self.name = name
        path = Path(name)
        if str(name).endswith(".parquet"):
            if not path.is_file():
                raise ConfigError(
                    f"{path}: no such file. Name a .parquet file of vectors, or a folder of sentence-transformers."
                )
            self._vectors: Callable[[list[str], Side], NDArray[np.float32]] = partial(_stored, path)
        else:
            self._vectors = partial(_computed, _opened(name, device))

    def teach(self, texts: Sequence[str], side: Side = "text") -> Taught:
        """The vectors of `texts`, float32, in their order; equal texts are computed once.

        Raises DataError for a text without a stored vector, or a vector that is not finite.
        """
        distinct = list(dict.fromkeys(texts))
        found = self._vectors(distinct, side)
        if not np.isfinite(found).all():
            bad = int(np.flatnonzero(~np.isfinite(found).all(axis=1))[0])
            raise DataError(f"{self.name}: its vector of {_shown(distinct[bad])} is not finite.")
        place = {text: number for number, text in enumerate(distinct)}
        vectors = found[[place[text] for text in texts]]
        return Taught(vectors, hashlib.sha256(np.ascontiguousarray(vectors).tobytes()).hexdigest())


def procrustes(
    teacher: Float[np.ndarray, "texts dim"], student: Float[np.ndarray, "texts own"]
) -> Float[np.ndarray, "dim own"]:
    """The map with orthonormal columns (or rows) that brings the teacher's unit vectors nearest to the student's.

    Where the student has more dimensions it keeps every cosine; where it has fewer, what the projection of the rest
    allows. Source: Schönemann 1966, "A generalized solution of the orthogonal Procrustes problem".
    """
    left, _, right = np.linalg.svd(unit(teacher).T @ unit(student), full_matrices=False)
    found: NDArray[np.float32] = (left @ right).astype(np.float32)
    return found


def unit(vectors: Float[np.ndarray, "texts dim"]) -> Float[np.ndarray, "texts dim"]:
    """The vectors at length 1; one of length 0 stays."""
    found: NDArray[np.float32] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return found


def _opened(teacher: str | Path, device: str | None) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise ConfigError(
            f"{teacher}: a teacher that computes needs the package sentence-transformers. Install it: "
            "pip install 'bothways[eval]', or give stored vectors (a .parquet file)."
        ) from None
    try:
        trusted = brings_our_module(Path(teacher))
        return SentenceTransformer(str(teacher), device=device, trust_remote_code=trusted)
    except (OSError, ValueError) as problem:
        raise ConfigError(
            f"{teacher}: cannot be opened as a teacher ({str(problem).splitlines()[0]}). Name a folder of "
            "sentence-transformers, or a .parquet file of vectors."
        ) from None


def _computed(model: Any, texts: list[str], side: Side) -> NDArray[np.float32]:
    encode = {"text": model.encode, "query": model.encode_query, "document": model.encode_document}[side]
    return np.asarray(encode(texts, convert_to_numpy=True, show_progress_bar=False), dtype=np.float32)


def _stored(path: Path, texts: list[str], side: Side) -> NDArray[np.float32]:
    """A text has one vector, whichever side it is on."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    place = {text: number for number, text in enumerate(texts)}
    vectors: NDArray[np.float32] | None = None
    there = np.zeros(len(texts), dtype=bool)
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            for name in (TEXT, VECTOR):
                if name not in file.schema_arrow.names:
                    known = ", ".join(f'"{item}"' for item in file.schema_arrow.names)
                    raise DataError(f'{path.name}: there is no column "{name}"; it has {known}.')
            row = 0
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=[TEXT, VECTOR]):
                for text, vector in zip(batch.column(TEXT).to_pylist(), batch.column(VECTOR), strict=True):
                    row += 1
                    if text not in place:
                        continue
                    values = np.asarray(vector.as_py() or (), dtype=np.float32)
                    if vectors is None:
                        vectors = np.zeros((len(texts), len(values)), dtype=np.float32)
                    if len(values) != vectors.shape[1] or not len(values):
                        raise DataError(
                            f"{path.name} row {row}: a vector of {len(values)} numbers, expected {vectors.shape[1]}."
                        )
                    vectors[place[text]], there[place[text]] = values, True
    except pa.ArrowException as problem:
        raise DataError(f"{path.name}: not a whole Parquet file ({problem}). Make it again.") from None
    if vectors is None or not there.all():
        missing = np.flatnonzero(~there)
        raise DataError(
            f"{path.name}: {len(missing):,} of {len(texts):,} texts have no vector there, the first of them "
            f"{_shown(texts[missing[0]])}. Store theirs too, or leave the texts out."
        )
    return vectors


def _shown(text: str) -> str:
    return f'"{text[:60]}{"..." if len(text) > 60 else ""}"'
