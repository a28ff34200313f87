"""Questions -> documents of an encoded corpus: the encoder that made its vectors, its index, filters."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from bothways.corpus.comparing import query_as_held
from bothways.corpus.fingerprint import corpus_fingerprint, encoder_fingerprint
from bothways.corpus.index import EXACT_ROWS, FOLDER, Indexed
from bothways.corpus.layout import ID, TEXT, Manifest, read_manifest
from bothways.corpus.table import SCORE, check_where, known_columns, nearest, open_table, write_table
from bothways.errors import ConfigError, DataError

Vectors = Float32[np.ndarray[Any, Any], "queries dim"]


@runtime_checkable
class EncodesQueries(Protocol):
    """What is asked of an encoder here; `Encoder` has it."""

    def encode(self, texts: Sequence[str], /, *, instruction: Any) -> Any: ...

    def encode_query(self, texts: Sequence[str], /) -> Any: ...


@dataclass(frozen=True)
class Hit:
    """A row that was found."""

    id: str
    score: float
    """The cosine to the query; of the precisions "binary" and "ubinary" the share of equal bits, 0 to 1."""
    text: str | None = None
    """None where the corpus keeps no texts."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Those that were asked for."""


class Searcher:
    """A corpus that is open for questions. Made by `Searcher.open`."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        table: Any,
        indexed: Indexed | None,
        encoder: EncodesQueries | Callable[[], EncodesQueries],
    ) -> None:
        self.folder, self.manifest, self.indexed = folder, manifest, indexed
        self._table, self._encoder = table, encoder

    @classmethod
    def open(
        cls,
        folder: str | Path,
        encoder: str | Path | EncodesQueries | None = None,
        *,
        load: Callable[[str | Path], EncodesQueries] | None = None,
    ) -> Searcher:
        """Open the folder of vectors that `bothways encode` wrote.

        `encoder` is where the encoder is, if not where it was when the corpus was encoded; one that is open already is
        taken as it is. `load` opens it; None: `Encoder.from_pretrained`. It is opened at the first question.
        A corpus of up to 100,000 rows needs no index: its table is made in a temporary folder, and gone with this.
        Raises DataError for a folder that is none, is not finished, is larger and without an index, has changed since
        it was indexed, or whose encoder has moved or is another one.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        indexed = Indexed.read(folder)
        if indexed is None and manifest.rows > EXACT_ROWS:
            raise DataError(
                f"{folder}: {manifest.rows:,} vectors and no index; without one, at most {EXACT_ROWS:,} are searched. "
                f"Make it: bothways index {folder}."
            )
        if indexed is not None and indexed.fingerprint != corpus_fingerprint(folder, manifest):
            raise DataError(
                f"{folder}: its vectors are others than those that were indexed. Make the index again: bothways index "
                f"{folder} --overwrite."
            )
        opened: EncodesQueries | Callable[[], EncodesQueries]
        if encoder is None or isinstance(encoder, str | Path):
            name = manifest.encoder if encoder is None else encoder
            _check_encoder(folder, manifest, name, given=encoder is not None)
            opened = partial(load or _from_pretrained, name)
        else:
            opened = encoder
        if indexed is not None:
            return cls(folder, manifest, open_table(folder / FOLDER), indexed, opened)
        place = Path(tempfile.mkdtemp(prefix="bothways-search-"))
        try:
            searcher = cls(folder, manifest, write_table(place, folder, manifest), None, opened)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        weakref.finalize(searcher, shutil.rmtree, place, ignore_errors=True)
        return searcher

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that can be shown, and named in filters beside id and text."""
        return self.manifest.columns if self.indexed is None else self.indexed.columns

    @property
    def described(self) -> str:
        """How it is searched, in words."""
        rows = f"{self.manifest.rows:,} vectors"
        if self.indexed is None:
            return f"{rows}, no index: all are compared"
        if self.indexed.probing is None:
            return f"{rows}, an exact index: all are compared"
        return f"{rows}, {self.indexed.index_type} of measured recall@10 {self.indexed.recall:.3f}"

    def search(
        self,
        queries: Sequence[str],
        k: int = 10,
        *,
        where: str | None = None,
        columns: Sequence[str] = (),
        instruction: str | None = None,
    ) -> list[list[Hit]]:
        """For each query its `k` nearest documents, or as many as there are, best first.

        `where` is a condition in LanceDB's SQL (`year > 2000 AND lang = 'en'`) on id, text and the corpus's columns;
        only rows that it is true of are looked at. `instruction` stands before each query; None: the encoder's stored
        prompt "query". Raises ConfigError for k < 1, an unknown column, or what is no condition, DataError for an
        empty query.
        """
        if isinstance(queries, str):
            raise ConfigError(f"search: queries is the text {queries!r}. Pass a list of texts.")
        for number, query in enumerate(queries):
            if not query.strip():
                raise DataError(f"search: queries[{number}] is empty. Ask something.")
        shown = self._check(k, where, columns)
        vectors = self._encode(list(queries), instruction) if queries else []
        return [self._hits(vector, k, where, shown) for vector in vectors]

    def search_vectors(
        self, vectors: Vectors, k: int = 10, *, where: str | None = None, columns: Sequence[str] = ()
    ) -> list[list[Hit]]:
        """The same for vectors of queries as the encoder gives them, in float32. Raises DataError for shorter ones."""
        shown = self._check(k, where, columns)
        return [self._hits(vector, k, where, shown) for vector in self._held(vectors)]

    def _check(self, k: int, where: str | None, columns: Sequence[str]) -> list[str]:
        if k < 1:
            raise ConfigError(f"search: k={k}, expected 1 or more.")
        if where is not None:
            check_where(self._table, where)
        return known_columns(self.columns, columns, "search: columns")

    def _encode(self, queries: list[str], instruction: str | None) -> Any:
        if not isinstance(self._encoder, EncodesQueries):
            self._encoder = self._encoder()
        if instruction is None:
            vectors = self._encoder.encode_query(queries)
        else:
            vectors = self._encoder.encode(queries, instruction=instruction)
        return self._held(np.asarray(vectors, dtype=np.float32))

    def _held(self, vectors: Vectors) -> Any:
        """As the table holds vectors; of those of a corpus that keeps the first numbers alone, these."""
        if vectors.shape[1] < self.manifest.dim:
            raise DataError(
                f"search: the query's vector has {vectors.shape[1]} numbers, but the corpus has {self.manifest.dim}. "
                "Use its encoder."
            )
        return query_as_held(vectors[:, : self.manifest.dim], self.manifest.precision)

    def _hits(self, vector: Any, k: int, where: str | None, shown: list[str]) -> list[Hit]:
        kept = [ID, *([TEXT] if self.manifest.texts else []), *shown]
        probing = None if self.indexed is None else self.indexed.probing
        found = nearest(self._table, self.manifest, vector, k, probing=probing, where=where, columns=kept)
        return [
            Hit(row[ID], row[SCORE], row.get(TEXT), {name: row[name] for name in shown}) for row in found.to_pylist()
        ]


def _check_encoder(folder: Path, manifest: Manifest, name: str | Path, *, given: bool) -> None:
    """Raises DataError if there is no encoder, or another one than the corpus was encoded with."""
    try:
        fingerprint = encoder_fingerprint(name)
    except DataError as problem:
        if given:
            raise
        raise DataError(
            f"{folder}: its encoder is no longer where it was. {problem} Say where it is now with --encoder."
        ) from None
    if fingerprint != manifest.fingerprint:
        raise DataError(
            f"{folder}: its vectors are of another encoder (fingerprint {manifest.fingerprint[:12]}) than {name} "
            f"({fingerprint[:12]}). Name the one that made them with --encoder, or encode the corpus again."
        )


def _from_pretrained(name: str | Path) -> EncodesQueries:
    from bothways.encoder import Encoder

    return Encoder.from_pretrained(name)
