"""Where a stage stands, on disk: written whole or not at all, read only by the run that wrote it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bothways.errors import TrainingError

KEPT = 2
FACTS = "run.pt"
"""In a folder of shards: what is not a tensor of the model."""
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def save(folder: Path, step: int, state: Mapping[str, Any]) -> Path:
    """Write one checkpoint under a name of its own, move it into place, and delete all but the last two."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.pt"
    partial = path.with_suffix(".partial")
    try:
        _write({**state, "step": step}, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    _flush(folder)
    _rotate(folder)
    return path


def save_shards(
    folder: Path,
    step: int,
    state: Mapping[str, Any],
    write: Callable[[Path], None],
    *,
    main: bool,
    agree: Callable[[int], Sequence[int]],
) -> Path:
    """The same with a folder in which every process writes its part by `write`; `agree` gathers a number of each."""
    path = folder / f"step-{step:08d}.shards"
    partial = path.with_suffix(".partial")

    def begin() -> None:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)

    def end() -> None:
        _write({**state, "step": step}, partial / FACTS)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(partial, path)
        _flush(folder)
        _rotate(folder)

    try:
        for act, mine in ((begin, main), (lambda: write(partial), True), (end, main)):
            _together(act if mine else None, agree)
    finally:
        if main:
            # Also after a failure: half of it would keep a full disk full.
            shutil.rmtree(partial, ignore_errors=True)
    return path


def _together(act: Callable[[], None] | None, agree: Callable[[int], Sequence[int]]) -> None:
    """Raises on every process the OSError that one has met, so that none waits for another."""
    problem: OSError | None = None
    try:
        if act is not None:
            act()
    except OSError as met:
        problem = met
    numbers = [number for number in agree(0 if problem is None else problem.errno or errno.EIO) if number]
    if problem is not None:
        raise problem
    if numbers:
        raise OSError(numbers[0], os.strerror(numbers[0]))


def found(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the earliest first."""
    return sorted(path for path in folder.glob("step-*") if path.suffix in (".pt", ".shards"))


def load(
    folder: Path, identity: Mapping[str, Any], say: Callable[[str], None] = lambda message: None
) -> dict[str, Any] | None:
    """The last checkpoint that can be read, its "path" with it, or None where there is none.

    One that is damaged is passed over, which is said. Raises TrainingError if all are, or, naming the first field, if
    it was written under another `identity` (settings, data, weights).
    """
    paths = found(folder)
    for path in reversed(paths):
        try:
            facts = path / FACTS if path.is_dir() else path
            state: dict[str, Any] = torch.load(facts, map_location="cpu", weights_only=True)
            written = state["identity"]
        except Exception as problem:  # zip, pickle and file system have each their own
            reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
            say(f"{path} is damaged ({reason}) and passed over")
            continue
        _check(path, written, identity)
        return {**state, "path": path}
    if paths:
        raise TrainingError(f"no checkpoint in {folder} can be read. Delete the folder to start from the first step.")
    return None


def is_full(problem: BaseException) -> bool:
    """Whether a write failed for want of space: the disk is full, or the quota, or the largest size of a file."""
    seen: BaseException | None = problem
    while seen is not None:
        # safetensors and other libraries in Rust tell of the number in words alone.
        if (isinstance(seen, OSError) and seen.errno in FULL) or any(f"(os error {n})" in str(seen) for n in FULL):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


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


def _check(path: Path, written: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    for name in dict.fromkeys([*identity, *written]):
        then, now = written.get(name), identity.get(name)
        if then != now:
            raise TrainingError(
                f"{path} cannot be resumed: {name} was {then!r} and is now {now!r}. "
                "Go on with what it was, or start anew without --resume in another folder."
            )


def _write(state: Mapping[str, Any], path: Path) -> None:
    with path.open("wb") as stream:
        torch.save(dict(state), stream)
        stream.flush()
        os.fsync(stream.fileno())


def _flush(folder: Path) -> None:
    """Make the new name last through a power cut, where folders can be synchronised."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _rotate(folder: Path) -> None:
    # A process that was killed while it wrote has left a part.
    for old in [*found(folder)[:-KEPT], *folder.glob("step-*.partial")]:
        if old.is_dir():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.unlink()
