"""model.onnx in onnxruntime, on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from bothways.errors import ConfigError, DataError
from bothways.runners.runner import INPUTS, STATES, VECTORS, Output


class OnnxRunner:
    """A session of onnxruntime with as many threads as torch has."""

    name = "onnxruntime"

    def __init__(self, file: Path, number_format: str, dtype: str | torch.dtype | None = None) -> None:
        if dtype is not None:
            raise ConfigError(
                f'dtype="{dtype}" with backend="onnx": model.onnx computes in the number format that it was exported '
                f"in, {number_format}. Leave dtype out, or export again with another --number-format."
            )
        self.number_format, self.why = number_format, ""
        self._session = session(file)
        self._given = [item.name for item in self._session.get_inputs()]

    def run(
        self,
        input_ids: Int[np.ndarray, "batch tokens"],
        attention_mask: Int[np.ndarray, "batch tokens"],
        pool_mask: Int[np.ndarray, "batch tokens"],
    ) -> Output:
        """See `Runner.run`."""
        batch = dict(zip(INPUTS, (input_ids, attention_mask, pool_mask), strict=True))
        return Output(*self._session.run([VECTORS, STATES], {name: batch[name] for name in self._given}))


def session(file: Path) -> Any:
    """Raises ConfigError if onnxruntime is not installed, DataError for a file that it cannot open."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError('backend="onnx" needs onnxruntime: pip install bothways[onnx].') from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Errors are raised; what else it would print is of no use to who encodes.
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own classes, by the kind of the defect
        raise DataError(f"{file}: {str(error).splitlines()[0]} Export again: bothways export.") from error
