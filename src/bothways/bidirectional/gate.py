"""The learned gate by which the second direction of a two-way sub-module comes in: made, saved with it, found again."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils.hub import cached_file

from bothways.errors import ConversionError

GATE = "two_way_gate"
"""Name of the one child that a sub-module gets."""
GATED = "two_way_gates"
"""Key in the config of a model whose files hold gates."""
GATE_START = 0.1
"""Share of the second direction before training: near what was pre-trained, and far enough from 0 for a gradient."""
GATE_SPEED = 100.0
"""Adam moves a weight by about its learning rate a step; the gate's counts so many times, or it would stay."""


class Gate(nn.Module):
    """`forward + g * (backward - forward)`, with a learned share g in (0, 1) for each channel, or one for all.

    An adapter of your own trains and saves it if peft's `modules_to_save` names "two_way_gate". Against the plain mean,
    and against leaving the mixers one-way: `python -m benchmarks recurrence`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.full((channels,), math.log(GATE_START / (1 - GATE_START)) / GATE_SPEED))

    def share(self) -> Tensor:
        """g, float32, of shape (channels,)."""
        return torch.sigmoid(GATE_SPEED * self.logit.float())

    def forward(self, forward: Tensor, backward: Tensor) -> Tensor:
        """Both (..., channels), in the text's order."""
        return torch.lerp(forward, backward, self.share().to(forward.dtype))


def share_of(module: nn.Module) -> float | None:
    """Mean share of the second direction in a two-way sub-module; None in any other."""
    gate: Any = module._modules.get(GATE)
    # peft puts what it trains beside the original.
    gate = gate.modules_to_save[gate.active_adapter] if hasattr(gate, "modules_to_save") else gate
    return float(gate.share().detach().mean()) if isinstance(gate, Gate) else None


def has_gates(model: nn.Module) -> bool:
    """Whether anything in the model is run both ways."""
    return any(isinstance(module, Gate) for module in model.modules())


@contextmanager
def half_open(model: nn.Module) -> Iterator[None]:
    """Every gate lets both directions count alike."""
    gates = [module.logit for module in model.modules() if isinstance(module, Gate)]
    kept = [logit.detach().clone() for logit in gates]
    with torch.no_grad():
        for logit in gates:
            logit.zero_()
        try:
            yield
        finally:
            for logit, value in zip(gates, kept, strict=True):
                logit.copy_(value)


@torch.no_grad()
def load_gates(model: PreTrainedModel) -> None:
    """Gives every gate the value it was saved with, in place, and has the config say that there are gates.

    Raises ConversionError if the config said so already, but the files that `model` came from do not hold them all.
    """
    gates = {name: module.get_submodule(GATE) for name, module in model.named_modules() if GATE in module._modules}
    saved_as = {name: _names_in_files(model, f"{name}.{GATE}.logit", gate) for name, gate in gates.items()}
    found: set[str] = set()
    for path in _weight_files(model):
        with safe_open(path, framework="pt") as tensors:
            for key in [key for key in tensors.keys() if GATE in key]:  # noqa: SIM118 (it is no mapping)
                for name, gate in gates.items():
                    # The trunk may have been saved and a model with a head been loaded, or the other way round.
                    if any(f".{own}".endswith(f".{key}") or key.endswith(f".{own}") for own in saved_as[name]):
                        gate.get_parameter("logit").copy_(tensors.get_tensor(key))
                        found.add(name)
    missing = sorted(set(gates) - found)
    if missing and getattr(model.config, GATED, False):
        raise ConversionError(
            f"{model.name_or_path or 'this model'} was saved with trained gates ({GATED} in its config), but none was "
            f"found for {missing[0]}: without them it computes something else.\n  Load it from a folder with its "
            f"safetensors files, or set {GATED} to false in config.json to begin anew."
        )
    setattr(model.config, GATED, True)


def _names_in_files(model: PreTrainedModel, name: str, gate: nn.Module) -> set[str]:
    """What a parameter is called in a saved file: transformers gives some families back the names they came with."""
    return {name, *revert_weight_conversion(model, {name: gate.get_parameter("logit").detach()})}


def _weight_files(model: PreTrainedModel) -> list[Path]:
    """The safetensors files that `model` came from, as far as they are on this machine."""
    if not model.name_or_path:
        return []
    find = partial(
        cached_file,
        model.name_or_path,
        revision=getattr(model.config, "_commit_hash", None),
        local_files_only=True,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    whole, index = find("model.safetensors"), find("model.safetensors.index.json")
    if whole is not None:
        return [Path(whole)]
    if index is None:
        return []
    parts = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()
    return [Path(index).parent / part for part in sorted(set(parts))]
