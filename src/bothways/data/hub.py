"""Data sets of the Hugging Face hub, or folders in that form, streamed by `datasets`, imported on first use."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bothways.data.formats import check_column
from bothways.data.rows import Raw
from bothways.errors import ConfigError, DataError


@dataclass(frozen=True)
class HubData:
    """One split of a data set. `name` is a hub id or a local folder; `config` one of its subsets, where it has several.

    `revision` is a branch, tag or commit of the hub; None: what is there now.
    """

    name: str
    config: str | None
    split: str
    revision: str | None

    def rows(self, columns: Sequence[str] | None) -> Iterator[Raw]:
        """The rows in order, streamed; of each, `columns` alone, which must be there; None: all.

        Raises ConfigError if `datasets` is not installed, DataError for a data set, subset, split or column that does
        not exist or cannot be read.
        """
        number, load = 0, self._loader()
        try:
            rows = self._builder(load).as_streaming_dataset(self.split)
            known = rows.column_names or list(next(iter(rows), {}))
            for column in columns or ():
                check_column(str(self), column, known)
            for value in rows if columns is None else rows.select_columns(list(columns)):
                number += 1
                yield Raw(number, 0, value)
        except DataError:
            raise
        except _problems() as problem:
            where = f" after row {number}" if number else ""
            raise DataError(f"{self}{where}: {_one_line(problem)}") from None

    def count(self) -> int:
        """How many rows there are: as the data set says, or counted where it does not."""
        load = self._loader()
        try:
            about = (self._builder(load).info.splits or {}).get(self.split)
        except _problems() as problem:
            raise DataError(f"{self}: {_one_line(problem)}") from None
        return int(about.num_examples) if about and about.num_examples else sum(1 for _ in self.rows(None))

    def fingerprint(self) -> str:
        """SHA-256 of what `datasets` tells one state of the data from another by: commits, or times of files."""
        load = self._loader()
        try:
            builder = self._builder(load)
        except _problems() as problem:
            raise DataError(f"{self}: {_one_line(problem)}") from None
        files = (builder.config.data_files or {}).get(self.split, ())
        state = [builder.hash, builder.config_id, self.split, *map(str, files), *getattr(files, "origin_metadata", ())]
        return hashlib.sha256(json.dumps(state).encode()).hexdigest()

    def _builder(self, load: Any) -> Any:
        return load(self.name, self.config, revision=self.revision)

    def _loader(self) -> Any:
        try:
            from datasets import load_dataset_builder
        except ImportError:
            raise ConfigError(
                f"{self}: reading the hub needs the package `datasets`. Install it: pip install 'bothways[hub]'."
            ) from None
        return load_dataset_builder

    def __str__(self) -> str:
        return f"hub:{self.name}"


def _problems() -> tuple[type[Exception], ...]:
    """What `datasets` raises where the data are to blame: it has no common base for them."""
    import pyarrow as pa
    from datasets.exceptions import DatasetsError

    return (OSError, ValueError, DatasetsError, pa.ArrowException)


def _one_line(problem: Exception) -> str:
    text = " ".join(str(problem).split()) or type(problem).__name__
    return text if text.endswith(".") else f"{text}."
