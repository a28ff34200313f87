"""What the engines of exported files share: texts to ids, one padded batch, and the vectors that the file pools."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bothways import runners
from bothways.loading import Wish
from bothways.runners.runner import computed
from bothways.text import after_prompt


class ExportedEngine:
    """One exported file, opened without a look at its fingerprint, so that a wrong one can be asked too."""

    def __init__(
        self, place: str | Path, backend: str, *, dtype: str | None = None, trust_remote_code: bool = False
    ) -> None:
        place = Path(place)
        folder, file = (place, None) if place.is_dir() else (place.parent, place)
        self._encoder = runners.unchecked(folder, backend, Wish(dtype, trust_remote_code=trust_remote_code), file)
        self.name = f"{self._encoder.runner.name} on {place}"
        self.max_length: int | None = self._encoder.settings.max_length
        self.number_format = self._encoder.runner.number_format

    def embed(self, texts: Sequence[str], /) -> np.ndarray:
        """All texts as one padded batch."""
        return self._computed(list(texts), [("", "")] * len(texts))

    def embed_prompted(self, texts: Sequence[str], prompt_name: str, /) -> np.ndarray:
        """With the stored prompt of that name before each."""
        return self._computed(*after_prompt(self._encoder.settings.prompts[prompt_name], texts))

    def close(self) -> None:
        """The engine lets go of its memory when nothing holds it any more."""
        del self._encoder

    def _computed(self, texts: list[str], around: list[tuple[str, str]]) -> np.ndarray:
        encoder = self._encoder
        return computed(encoder.runner, encoder.collate(encoder.rows(texts, around))).vectors
