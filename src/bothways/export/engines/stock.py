"""A sentence-transformers folder, opened by plain SentenceTransformer as anybody would, without help from here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bothways.artefact import brings_our_module
from bothways.errors import ConfigError, DataError


class StockEngine:
    """sentence-transformers. Raises ConfigError if it is not installed, DataError if it cannot open the folder."""

    def __init__(self, folder: str | Path, *, device: str | None = None, trust_remote_code: bool = False) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ConfigError(
                "Asking sentence-transformers for vectors needs that package: pip install 'bothways[eval]'."
            ) from error
        # The module of a family that needs code is run without asking if it is ours to the byte.
        trusted = trust_remote_code or brings_our_module(Path(folder))
        try:
            self.model = SentenceTransformer(
                str(folder), device=device, trust_remote_code=trusted, local_files_only=True
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise DataError(f"{folder}: sentence-transformers does not open it: {error}") from error
        self.name = f"sentence-transformers on {folder}"
        self.max_length: int | None = self.model.max_seq_length
        self.number_format = str(next(self.model.parameters()).dtype).removeprefix("torch.")

    def embed(self, texts: Sequence[str], /) -> np.ndarray:
        """One call of `encode`: what is in it is padded together. A folder's default prompt has its effect."""
        return self._encode(texts, None)

    def embed_prompted(self, texts: Sequence[str], prompt_name: str, /) -> np.ndarray:
        """With the stored prompt of that name, as the folder has it."""
        return self._encode(texts, prompt_name)

    def close(self) -> None:
        """Nothing stays open."""

    def _encode(self, texts: Sequence[str], prompt_name: str | None) -> np.ndarray:
        found = self.model.encode(
            list(texts),
            prompt_name=prompt_name,
            batch_size=max(1, len(texts)),
            show_progress_bar=False,
        )
        return np.asarray(found, dtype=np.float32)
