"""OpenVINO: the ONNX file of `export.onnx` as openvino_model.xml and .bin, computed in float32 or bfloat16."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from bothways.artefact import EXPORTED
from bothways.encoder import Encoder
from bothways.errors import ConfigError
from bothways.export import onnx
from bothways.export.engines.openvino import OpenVinoEngine

FORMATS = ("float32", "bfloat16")
"""In which the file is computed where it is opened, as far as the CPU can; its weights are float32 in both."""


def write(encoder: Encoder, folder: Path, out: Path, *, number_format: str | None = None) -> OpenVinoEngine:
    """Writes the new folder `out`: openvino_model.xml and .bin, and what `onnx.write` puts beside its file.

    `number_format` is one of FORMATS, None: float32. Raises as `onnx.write`.
    """
    chosen = onnx.checked_format(number_format, FORMATS, "openvino")
    _openvino()
    out.mkdir()
    with tempfile.TemporaryDirectory(dir=out) as between:
        file = Path(between) / EXPORTED["onnx"]
        onnx.write_file(encoder, file)
        convert_file(file, out)
    onnx.complete(encoder, folder, out, "openvino", chosen)
    return OpenVinoEngine(out)


def convert_file(file: Path, out: Path) -> None:
    """An ONNX file to openvino_model.xml and .bin in the folder `out`; the weights stay as they are."""
    openvino = _openvino()
    # The weights are read while they are written: the file is there until then.
    openvino.save_model(openvino.convert_model(str(file)), str(out / EXPORTED["openvino"]), compress_to_fp16=False)


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise ConfigError("export --to openvino needs OpenVINO: pip install bothways[onnx,openvino].") from error
    return openvino
