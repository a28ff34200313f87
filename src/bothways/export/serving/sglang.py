"""SGLang: both ways for Gemma 3 by its own key, under one kind of attention; always the mean, at unit length."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from bothways.engines import SGLANG
from bothways.errors import ConfigError
from bothways.export.serving.folders import write_for

if TYPE_CHECKING:
    from bothways.encoder import Encoder
    from bothways.export.engines.stock import StockEngine

URL = "http://127.0.0.1:30000/v1/embeddings"


def write(encoder: Encoder, folder: Path, out: Path, *, number_format: str | None = None) -> StockEngine:
    """Writes `out` for SGLang, see `write_for`. Raises ConfigError also for vectors that are not of unit length."""
    if not encoder.settings.normalize:
        raise ConfigError(
            f"export {folder} --to sglang: {SGLANG.name} {SGLANG.version} scales every vector to unit length, and the "
            "encoder has normalize=False. Serve it with `bothways serve`."
        )
    return write_for("sglang", encoder, folder, out, number_format=number_format)


def commands(folder: Path, out: Path) -> list[str]:
    """What to run: the server, the check.

    The attention is named because others are wrong without a word: "triton" opens the windows, "flashinfer" and
    "torch_native" are causal.
    """
    serve = ["python", "-m", "sglang.launch_server", "--model-path", str(out), "--is-embedding"]
    serve += ["--attention-backend", "fa3"]
    return [shlex.join(serve), shlex.join(["bothways", "verify", URL, "--against", str(folder)])]
