"""openvino_model.xml asked through OpenVINO: tokenizer and compiled model alone, no torch model."""

from __future__ import annotations

from pathlib import Path

from bothways.export.engines.exported import ExportedEngine


class OpenVinoEngine(ExportedEngine):
    """OpenVINO on an exported folder, or on the file in it. `dtype`: float32, bfloat16 or auto; None: the folder's.

    Raises as `runners.unchecked`.
    """

    def __init__(self, place: str | Path, *, dtype: str | None = None, trust_remote_code: bool = False) -> None:
        super().__init__(place, "openvino", dtype=dtype, trust_remote_code=trust_remote_code)
