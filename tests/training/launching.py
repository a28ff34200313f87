"""Programs in processes of their own, on one thread each, launched as a user launches them."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from worker import alone

WORKER = Path(__file__).with_name("worker.py")
SOURCE = str(Path(__file__).resolve().parents[2] / "src")


def environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RANK", "WORLD", "LOCAL_"))}
    path = os.pathsep.join(filter(None, (SOURCE, str(WORKER.parent), os.environ.get("PYTHONPATH"))))
    return {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **changes}


def command(*arguments: object, processes: int = 1, module: bool = False, look: float = 0.1) -> list[str]:
    """`look`: seconds between the launcher's looks at its processes; it ends all when one of them is gone."""
    words = [sys.executable, "-W", "ignore"]
    if processes > 1:
        words += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        words += ["--monitor-interval", str(look)]
    return [*words, *(["-m"] if module else []), *map(str, arguments)]


def begin(*jobs: dict[str, Any], processes: int = 1, look: float = 0.1) -> subprocess.Popen[str]:
    words = command(WORKER, json.dumps(jobs, default=str), processes=processes, look=look)
    return subprocess.Popen(words, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run(*jobs: dict[str, Any], processes: int = 1, look: float = 0.1) -> tuple[int, str]:
    """Exit code and stderr."""
    process = begin(*jobs, processes=processes, look=look)
    try:
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, said


def fork(job: dict[str, Any] | None) -> Any:
    """The job in a started process of its own, forked from one that has imported everything: an eighth of the wait.

    None is no job, but starts that other process.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["worker"])
    # The server finds what it loads beforehand by this alone.
    with mock.patch.dict(os.environ, environment()):
        forkserver.ensure_running()
    process = context.Process(target=alone, args=(json.loads(json.dumps(job, default=str)),))
    process.start()
    return process


def weights(job: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What a run has left."""
    found: dict[str, torch.Tensor] = torch.load(job["out"], weights_only=True)["weights"]
    return found


def worst(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference of two models' weights."""
    assert list(one) == list(other)
    return max(float((one[name] - other[name]).abs().max()) for name in one)
