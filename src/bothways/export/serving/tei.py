"""Text Embeddings Inference: it reads `use_bidirectional_attention` or `is_causal`, and configs of an older form."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bothways.engines import TEI
from bothways.errors import ConfigError
from bothways.export.serving.folders import write_for

if TYPE_CHECKING:
    from bothways.encoder import Encoder
    from bothways.export.engines.stock import StockEngine

URL = "http://127.0.0.1:8080/embed"
PLAIN = "default"


def write(encoder: Encoder, folder: Path, out: Path, *, number_format: str | None = None) -> StockEngine:
    """Writes `out` for Text Embeddings Inference, see `write_for`.

    Raises ConfigError also for scaled rotary positions.
    """
    rotary = rotary_keys(
        dict(getattr(encoder.model.config, "rope_parameters", None) or {}), f"export {folder} --to tei"
    )
    return write_for("tei", encoder, folder, out, number_format=number_format, config=rotary)


def rotary_keys(parameters: dict[str, Any], call: str) -> dict[str, float]:
    """The keys by which older configs say what `rope_parameters` does. Raises ConfigError for scaled positions."""
    by_layer = {"rope_theta": "full_attention", "rope_local_base_freq": "sliding_attention"}
    nested = any(isinstance(value, dict) for value in parameters.values())
    kinds = (
        {key: parameters.get(layer) or {} for key, layer in by_layer.items()} if nested else {"rope_theta": parameters}
    )
    for key, values in kinds.items():
        if values.get("rope_type", PLAIN) != PLAIN:
            raise ConfigError(
                f'{call}: rotary positions of the kind "{values["rope_type"]}" ({key}) are not known to be read by '
                f"{TEI.name} {TEI.version}. Serve it with vLLM, or with `bothways serve`."
            )
    return {key: float(values["rope_theta"]) for key, values in kinds.items() if "rope_theta" in values}


def commands(folder: Path, out: Path) -> list[str]:
    """What to run: the server, the check."""
    serve = ["text-embeddings-router", "--model-id", str(out), "--pooling", _pooling(out), "--port", "8080"]
    return [shlex.join(serve), shlex.join(["bothways", "verify", URL, "--against", str(folder)])]


def _pooling(out: Path) -> str:
    from bothways.artefact import read_stock_folder

    return {"mean": "mean", "cls": "cls", "last": "last-token"}[read_stock_folder(out).settings.pooling]
