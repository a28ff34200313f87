"""Where a stage stands, on disk: written whole or not at all, read only by the run that wrote it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bothways.errors import TrainingError

KEPT = 2
PATTERN = "step-*.pt"


def save(folder: Path, step: int, state: Mapping[str, Any]) -> Path:
    """Write one checkpoint under a name of its own, move it into place, and delete all but the last two."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.pt"
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as stream:
            torch.save({**state, "step": step}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    for old in found(folder)[:-KEPT]:
        old.unlink()
    return path


def found(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the earliest first."""
    return sorted(folder.glob(PATTERN))


def load(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The last checkpoint, or None where there is none.

    Raises TrainingError, naming the first field, if it was written under another `identity` (settings, data, weights).
    """
    paths = found(folder)
    if not paths:
        return None
    state: dict[str, Any] = torch.load(paths[-1], map_location="cpu", weights_only=True)
    written = state["identity"]
    for name in dict.fromkeys([*identity, *written]):
        then, now = written.get(name), identity.get(name)
        if then != now:
            raise TrainingError(
                f"{paths[-1]} cannot be resumed: {name} was {then!r} and is now {now!r}. "
                "Go on with what it was, or start anew without --resume in another folder."
            )
    return state


def identity(settings: Mapping[str, Any], **facts: Any) -> dict[str, Any]:
    """What must not change between a run and its continuation, as plain values."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(settings)))
    return {**facts, **plain}


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over names, shapes and a sample of some 64 numbers of every weight: enough to tell two models apart."""
    digest = hashlib.sha256()
    for name, weight in module.named_parameters():
        flat = weight.detach().flatten()
        sample = flat[:: max(1, flat.numel() // 64)].float().cpu().numpy()
        digest.update(f"{name} {tuple(weight.shape)}".encode() + sample.tobytes())
    return digest.hexdigest()
