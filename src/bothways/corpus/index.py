"""An index of a corpus: a LanceDB table, for large ones with an ANN index whose recall was measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from bothways.corpus.comparing import is_binary, metric
from bothways.corpus.fingerprint import corpus_fingerprint
from bothways.corpus.layout import ID, TEXT, VECTOR, Manifest, read_manifest
from bothways.corpus.recall import NEIGHBOURS, Sample, tuned
from bothways.corpus.table import Probing, known_columns, write_table
from bothways.errors import ConfigError, DataError
from bothways.folders import new_folder, refuse_taken

FOLDER, FILE = "index", "index.json"
EXACT_ROWS = 100_000
"""Up to here every vector is compared, which takes milliseconds."""
ROWS_OF_PARTITION = 8192
"""LanceDB's own target."""
FEWEST = 256
"""Rows that LanceDB wants at least to train an index."""
Kind = Literal["auto", "exact", "ann"]
IndexType = Literal["IVF_SQ", "IVF_PQ", "IVF_HNSW_SQ"]


@dataclass(frozen=True, kw_only=True)
class Index:
    """How a corpus is indexed. The terms are LanceDB's."""

    kind: Kind = "auto"
    """exact: every vector is compared; ann: those near the query alone; auto: ann above `exact_rows`."""
    exact_rows: int = EXACT_ROWS
    """The most rows that kind="auto" compares exactly."""
    index_type: IndexType = "IVF_SQ"
    """Of ann: IVF_SQ is quick to build; IVF_PQ is smallest; IVF_HNSW_SQ is a graph. Bits are always IVF_FLAT."""
    num_partitions: int | None = None
    """Partitions of ann; None: one for 8,192 rows."""
    num_sub_vectors: int | None = None
    """Of IVF_PQ: parts of a vector, one byte each; must divide its length. None: LanceDB's choice."""
    recall: float = 0.95
    """The recall@10 that nprobes and refine_factor are chosen for."""
    sample: int = 200
    """Rows of the corpus that are asked to choose them, and as many others to measure what is then reached."""
    seed: int = 0
    """Of the sample."""
    filters: tuple[str, ...] = ()
    """Columns that get an index of their own, so that filters on them are quick."""
    columns: tuple[str, ...] | None = None
    """Columns to keep beside id and text; None: all of the corpus."""

    def __post_init__(self) -> None:
        if not 0 < self.recall <= 1:
            raise ConfigError(f"Index(recall={self.recall:g}): expected a share, above 0 and at most 1.")
        for name in ("num_partitions", "num_sub_vectors", "sample"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"Index({name}={value}): expected 1 or more.")


@dataclass(frozen=True, kw_only=True)
class Indexed:
    """What an index is, as index.json says it."""

    fingerprint: str
    """Of the corpus that it was made of."""
    rows: int
    kind: Literal["exact", "ann"]
    index_type: str = ""
    """Of ann, as the following."""
    num_partitions: int = 0
    probing: Probing | None = None
    """How it is searched; None: every vector is compared."""
    recall: float = 1.0
    """recall@10 against exact search, measured on rows of the corpus (each but for itself) that chose nothing."""
    wanted: float = 1.0
    """The recall@10 that was asked for."""
    sample: int = 0
    """Rows that measured it."""
    seed: int = 0
    filters: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    lancedb: str = ""
    """The version that wrote it."""

    @property
    def reached(self) -> bool:
        """Whether the recall is what was wanted."""
        return self.recall >= self.wanted

    @classmethod
    def read(cls, folder: Path) -> Indexed | None:
        """Of the index in a corpus's folder; None if there is none. Raises DataError if it cannot be read."""
        if not (folder / FOLDER).exists():
            return None
        try:
            found = json.loads((folder / FOLDER / FILE).read_text(encoding="utf-8"))
            probing = found.pop("probing")
            found |= {name: tuple(found[name]) for name in ("filters", "columns")}
            return cls(**found, probing=Probing(**probing) if probing else None)
        except (OSError, json.JSONDecodeError, KeyError, TypeError) as problem:
            raise DataError(
                f"{folder / FOLDER}: no index of this version ({problem!r}). Make it again: bothways index {folder} "
                "--overwrite."
            ) from None


def build_index(
    folder: str | Path,
    settings: Index | None = None,
    *,
    overwrite: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> Indexed:
    """Index the corpus in `folder`, in its sub-folder "index", which appears whole or not at all; `tell` hears steps.

    Memory does not grow with the corpus, but for what LanceDB takes to train an index. Raises ConfigError if there is
    an index and not `overwrite`, or for a column that is not there, DataError for a corpus that is not finished.
    """
    folder, settings = Path(folder), Index() if settings is None else settings
    manifest = read_manifest(folder)
    way_out = f"Make it anew with --overwrite: bothways index {folder} --overwrite."
    if not overwrite:
        refuse_taken(folder / FOLDER, way_out)
    kept = manifest.columns if settings.columns is None else settings.columns
    columns = known_columns(manifest.columns, kept, "index: columns")
    known_columns([ID, *([TEXT] if manifest.texts else []), *columns], settings.filters, "index: filters")
    kind = _kind(settings, manifest)
    if kind == "ann":
        _check_trainable(settings, manifest)
    with new_folder(folder / FOLDER, overwrite=overwrite, way_out=way_out) as partial:
        tell(f"{manifest.rows:,} rows are written to a LanceDB table")
        table = write_table(partial, folder, manifest, columns)
        _index_columns(table, settings, tell)
        indexed = Indexed(
            fingerprint=corpus_fingerprint(folder, manifest),
            rows=manifest.rows,
            kind=kind,
            filters=settings.filters,
            columns=tuple(columns),
            lancedb=version("lancedb"),
            **(_approximate(table, folder, manifest, settings, tell) if kind == "ann" else {}),
        )
        (partial / FILE).write_text(json.dumps(asdict(indexed), indent=1) + "\n", encoding="utf-8")
    return indexed


def _kind(settings: Index, manifest: Manifest) -> Literal["exact", "ann"]:
    if settings.kind == "auto":
        return "ann" if manifest.rows > settings.exact_rows else "exact"
    return settings.kind


def _check_trainable(settings: Index, manifest: Manifest) -> None:
    if manifest.rows < FEWEST:
        raise ConfigError(
            f'Index(kind="ann") of {manifest.rows} rows: LanceDB trains on {FEWEST} or more. Use kind="exact".'
        )
    parts = settings.num_sub_vectors
    if parts is not None and (settings.index_type != "IVF_PQ" or is_binary(manifest.precision)):
        raise ConfigError(f"Index(num_sub_vectors={parts}): IVF_PQ alone has them, and vectors of bits have no IVF_PQ.")
    if parts is not None and manifest.dim % parts:
        raise ConfigError(f"Index(num_sub_vectors={parts}): does not divide the vectors' {manifest.dim} numbers.")


def _index_columns(table: Any, settings: Index, tell: Callable[[str], None]) -> None:
    from lancedb.index import BTree

    for name in settings.filters:
        tell(f'the column "{name}" is indexed')
        table.create_index(name, config=BTree())


def _approximate(
    table: Any, folder: Path, manifest: Manifest, settings: Index, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Train an ANN index of the table, choose how it is searched, and measure the recall of that."""
    import lancedb.index as kinds

    index_type = "IVF_FLAT" if is_binary(manifest.precision) else settings.index_type
    of_type = {"IVF_SQ": kinds.IvfSq, "IVF_PQ": kinds.IvfPq, "IVF_HNSW_SQ": kinds.HnswSq, "IVF_FLAT": kinds.IvfFlat}
    partitions = settings.num_partitions or -(-manifest.rows // ROWS_OF_PARTITION)
    options = {"num_sub_vectors": settings.num_sub_vectors} if index_type == "IVF_PQ" else {}
    tell(f"{index_type} of {partitions:,} partitions is trained")
    config = of_type[index_type](distance_type=metric(manifest.precision), num_partitions=partitions, **options)
    table.create_index(VECTOR, config=config)
    tell(f"recall@{NEIGHBOURS} is measured against exact search")
    chooses, measures = Sample.two(folder, manifest, settings.sample, settings.seed)
    refine = not is_binary(manifest.precision)
    probing = tuned(lambda tried: chooses.surely(table, tried), partitions, settings.recall, refine=refine)
    return {
        "index_type": index_type,
        "num_partitions": partitions,
        "probing": probing,
        "recall": measures.recall(table, probing),
        "wanted": settings.recall,
        "sample": len(measures.rows),
        "seed": settings.seed,
    }
