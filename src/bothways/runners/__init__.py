"""Vectors without torch's model: the files that `bothways export` writes, computed by onnxruntime or OpenVINO."""

from bothways.runners.exported import RUNNERS, Backend, ExportedEncoder, opened, unchecked

__all__ = ["RUNNERS", "Backend", "ExportedEncoder", "opened", "unchecked"]
