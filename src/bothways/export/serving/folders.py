"""The folder that a server is given: the stock one without its head, looked at as the server reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bothways import artefact
from bothways.engines import ENGINES, Key
from bothways.errors import ConfigError
from bothways.export.engines.stock import StockEngine
from bothways.export.serving.allowed import require_served

if TYPE_CHECKING:
    from bothways.encoder import Encoder

SAYS: Mapping[Key, bool] = {"is_causal": False, "use_bidirectional_attention": True}
"""What a key has to say, in config.json, for attention over the whole text."""


def write_for(
    to: str,
    encoder: Encoder,
    folder: Path,
    out: Path,
    *,
    number_format: str | None,
    config: Mapping[str, Any] | None = None,
) -> StockEngine:
    """Writes `out` with the key that the server `to` reads, and `config` added to config.json.

    What is returned reads the same files in sentence-transformers, so that they are compared before there is a server;
    the server itself is compared when it runs. Raises ConfigError for what the server does not serve right.
    """
    if number_format is not None:
        raise ConfigError(
            f"export {folder} --to {to} --number-format {number_format}: the folder keeps the encoder's own weights, "
            "and the server is told on its command line. Leave it out."
        )
    key = require_served(to, encoder, folder)
    encoder.save_pretrained(out, head=False)
    _write_config(out, {**(config or {}), key: SAYS[key]})
    _require_as_read(encoder, out)
    engine = StockEngine(out, device=str(encoder.device))
    engine.name = f"the folder for {ENGINES[to].name}, read by sentence-transformers from {out}"
    return engine


def config_of(folder: Path) -> dict[str, Any]:
    """The config.json of a folder."""
    content: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return content


def _write_config(folder: Path, more: Mapping[str, Any]) -> None:
    content = json.dumps({**config_of(folder), **more}, indent=2, ensure_ascii=False)
    (folder / "config.json").write_text(content + "\n", encoding="utf-8")


def _require_as_read(encoder: Encoder, folder: Path) -> None:
    """Pooling and normalisation are read from modules.json and 1_Pooling: what they say is what the encoder does."""
    found = artefact.read_stock_folder(folder).settings
    if (found.pooling, found.normalize) != (encoder.settings.pooling, encoder.settings.normalize):
        raise AssertionError(f"{folder} says {found}, the encoder has {encoder.settings}")
