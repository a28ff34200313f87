"""model.onnx asked through onnxruntime: tokenizer and session alone, no torch model."""

from __future__ import annotations

from pathlib import Path

from bothways.export.engines.exported import ExportedEngine


class OnnxEngine(ExportedEngine):
    """onnxruntime on an exported folder, or on the file in it. Raises as `runners.unchecked`."""

    def __init__(self, place: str | Path, *, trust_remote_code: bool = False) -> None:
        super().__init__(place, "onnx", trust_remote_code=trust_remote_code)
