"""The other end of the pipe: a process that does one step when it is asked, and sleeps in between."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import llm2vec_env
from benchmarks.frame import ROOT
from benchmarks.peers.condition import Condition
from benchmarks.peers.wire import PIN

SHOWN = 15
"""Last lines of a dead worker's stderr that are shown."""


class DiedError(Exception):
    """A worker ended before it was told to."""


class Worker:
    """One variant, in a process of its own; nothing else of this benchmark computes while it does a step."""

    def __init__(self, name: str, who: str, attention: str, condition: Condition, folder: Path) -> None:
        self.name = name
        module = f"benchmarks.peers.{condition.work}_{who.replace('-', '_')}"
        self.errors = folder / f"{name}.err"
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        python = sys.executable
        if who == "llm2vec":
            python = str(llm2vec_env.PYTHON)
            environment.pop("PYTHONPATH", None)
        if condition.device == "cpu":
            one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
            environment |= {PIN: str(max(os.sched_getaffinity(0))), **one_thread}
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [python, "-m", module, condition.job(folder, attention).argument()],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def ready(self) -> dict[str, Any]:
        """What it said of itself when it was ready for the first step."""
        return self._answer()

    def step(self, kind: str = "step") -> dict[str, Any]:
        """Have it do one step, or "profile" one. Raises DiedError."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(kind + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self._dead()
        return self._answer()

    def stop(self) -> None:
        """End it, if it has not ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self._dead()
        found: dict[str, Any] = json.loads(line)
        return found

    def _dead(self) -> None:
        code = self.process.wait()
        said = "\n".join(self.errors.read_text(encoding="utf-8", errors="replace").splitlines()[-SHOWN:])
        raise DiedError(f"{self.name} ended with exit code {code}:\n{said}")
