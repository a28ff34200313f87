"""openvino_model.xml in OpenVINO, on the CPU, in float32 or bfloat16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from bothways import hardware
from bothways.errors import ConfigError, DataError
from bothways.runners.runner import INPUTS, STATES, VECTORS, Output

HINTS = {"float32": "f32", "bfloat16": "bf16"}
"""Number format -> OpenVINO's word for it."""


class OpenvinoRunner:
    """A compiled model of OpenVINO with as many threads as torch has.

    On a CPU without bfloat16 OpenVINO computes in float32 whatever it is told. A folder exported for bfloat16 is then
    opened in float32, which `why` says; asking for bfloat16 by `dtype` is refused.
    """

    name = "openvino"

    def __init__(self, file: Path, number_format: str, dtype: str | torch.dtype | None = None) -> None:
        core = _core()
        self.number_format, self.why = _chosen(
            number_format, dtype, core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        )
        hints = {
            "INFERENCE_PRECISION_HINT": HINTS.get(self.number_format, "f32"),
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        try:
            compiled = core.compile_model(str(file), "CPU", hints)
        except Exception as error:  # it raises RuntimeError for all there is
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise DataError(f"{file}: {lines[-1]} Export again: bothways export.") from error
        self._compiled = compiled
        self._given = [item.get_any_name() for item in compiled.inputs]

    def run(
        self,
        input_ids: Int[np.ndarray, "batch tokens"],
        attention_mask: Int[np.ndarray, "batch tokens"],
        pool_mask: Int[np.ndarray, "batch tokens"],
    ) -> Output:
        """See `Runner.run`."""
        batch = dict(zip(INPUTS, (input_ids, attention_mask, pool_mask), strict=True))
        found = self._compiled({name: batch[name] for name in self._given})
        return Output(found[VECTORS], found[STATES])


def _chosen(number_format: str, dtype: str | torch.dtype | None, capabilities: list[str]) -> tuple[str, str]:
    """Number format and reason."""
    native = "BF16" in capabilities
    lacks = f"this CPU has no bfloat16 that OpenVINO uses (it offers {', '.join(capabilities)})"
    if dtype is None:
        return ("float32", lacks) if number_format == "bfloat16" and not native else (number_format, "")
    if dtype == "auto":
        return ("bfloat16", "OpenVINO offers it on this CPU") if native else ("float32", lacks)
    wished = str(hardware.choose_dtype(dtype, torch.device("cpu")).value).removeprefix("torch.")
    if wished not in HINTS:
        raise ConfigError(f'dtype="{wished}" with backend="openvino": expected one of {", ".join(HINTS)}, or auto.')
    if wished == "bfloat16" and not native:
        raise ConfigError(
            f'dtype="bfloat16" with backend="openvino": {lacks}, and it would compute in float32 without a word. '
            'Use dtype="auto" or "float32".'
        )
    return wished, "asked for"


def _core() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise ConfigError('backend="openvino" needs OpenVINO: pip install bothways[openvino].') from error
    return openvino.Core()
