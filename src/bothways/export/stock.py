"""The encoder as a folder for plain sentence-transformers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bothways.errors import ConfigError
from bothways.export.engines.stock import StockEngine

if TYPE_CHECKING:
    from bothways.encoder import Encoder


def write(encoder: Encoder, folder: Path, out: Path, *, number_format: str | None = None) -> StockEngine:
    """Writes `out`, a folder without language-model head and adapter, and opens it in sentence-transformers.

    A family that needs code gets the module that brings it, which is then trusted: it was written here.
    Raises ConfigError for a number format: the weights stay in their own.
    """
    if number_format is not None:
        raise ConfigError(
            f"--number-format {number_format}: a sentence-transformers folder keeps the number format of {folder}. "
            "Leave it out, or load the encoder with another dtype and save that."
        )
    encoder.save_pretrained(out, head=False)
    return StockEngine(out, device=str(encoder.device))
