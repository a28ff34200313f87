"""vLLM: it reads `is_causal` for some families, and a plugin of ours opens others in its Transformers backend."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from bothways.engines import VLLM
from bothways.export.serving.folders import config_of, write_for
from bothways.vllm_plugin import ARCHITECTURE

if TYPE_CHECKING:
    from bothways.encoder import Encoder
    from bothways.export.engines.stock import StockEngine

URL = "http://127.0.0.1:8000/v1/embeddings"


def write(encoder: Encoder, folder: Path, out: Path, *, number_format: str | None = None) -> StockEngine:
    """Writes `out` for vLLM, see `write_for`."""
    needs_plugin = encoder.model.config.model_type in VLLM.plugin
    # Without the plugin vLLM then knows no such architecture, where it would serve the family's own one causal.
    config = {"architectures": [ARCHITECTURE]} if needs_plugin else {}
    return write_for("vllm", encoder, folder, out, number_format=number_format, config=config)


def commands(folder: Path, out: Path) -> list[str]:
    """What to run: the plugin where it is needed, the server, the check."""
    config = config_of(out)
    lines = []
    if ARCHITECTURE in config.get("architectures", ()):
        # Its dependencies are not needed there, and transformers would be newer than vLLM allows.
        lines.append("pip install --no-deps bothways")
    # "auto" would serve float32 weights in half precision.
    dtype = config.get("dtype", "float32")
    lines.append(shlex.join(["vllm", "serve", str(out), "--runner", "pooling", "--dtype", dtype]))
    return [*lines, shlex.join(["bothways", "verify", URL, "--against", str(folder)])]
