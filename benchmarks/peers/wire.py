"""A worker's end: one training step at a time, when it is told to, measured in CPU seconds and resident memory."""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import torch

PIN = "BENCHMARK_CPU"
"""Environment variable: the CPU that every worker computes on."""
PACKAGES = ("llm2vec", "sentence-transformers", "torch", "transformers", "tokenizers", "peft", "accelerate", "datasets")
"""What the figures depend on."""
MANY_STEPS = 1_000_000
"""Steps a worker sets out to do; it is stopped long before."""


@dataclass(frozen=True)
class Job:
    """What a worker trains, as JSON on its command line."""

    folder: str
    """A transformers folder with tokenizer and the rows to train on."""
    tune: str
    """lora or full."""
    attention: str
    """As transformers names it; "auto" leaves the choice to bothways."""
    batch: int
    """Rows of one step."""
    tokens: int
    """Tokens of the longest row."""
    device: str
    """cpu or cuda."""
    dtype: str
    """float32, or bfloat16 for mixed precision."""
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    learning_rate: float = 5e-5

    @classmethod
    def given(cls) -> Self:
        """The job on this worker's command line."""
        return cls(**json.loads(sys.argv[1]))

    def argument(self) -> str:
        """For the command line."""
        return json.dumps(asdict(self))


def weights_dtype(given: Job) -> torch.dtype:
    """The dtype to load in: the job's for weights that stay frozen, float32 for those that are trained."""
    dtype: torch.dtype = getattr(torch, given.dtype) if given.tune == "lora" else torch.float32
    return dtype


class Gate:
    """Where a worker waits between two steps. Made first: from then on only this writes to the pipe of stdout.

    On CPU a step takes the CPU seconds of this process, on one thread of one CPU, and memory is the resident set's
    high-water mark less the resident set before the model was made. On CUDA it is wall-clock time, the device idle at
    both ends, and the most memory that torch had allocated.
    """

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")
        self._answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        if not self.cuda:
            torch.set_num_threads(1)
        self._before = 0
        self._clock = self._wall = 0.0
        self._asked: Any = None
        self._profile: Any = None

    def before_model(self) -> None:
        """Everything is imported, nothing of the model is in memory."""
        gc.collect()
        self._before = 0 if self.cuda else status("VmRSS")

    def open(self, **facts: Any) -> bool:
        """Ready for the first step; `facts` are told. Returns whether there is one, like `step`."""
        self._say(versions=_versions(), **facts)
        cpu = os.environ.get(PIN)
        if cpu and not self.cuda:
            os.sched_setaffinity(0, {int(cpu)})
        return self._wait()

    def step(self, **facts: Any) -> bool:
        """A step is done: tell what it took (and `facts`), and wait. Returns whether there is another."""
        taken, wall = self._now() - self._clock, time.perf_counter() - self._wall
        parts = {}
        if self._profile is not None:
            parts = {"parts": self._profile.stop()}
            self._profile = None
        self._say(seconds=taken, wall=wall, memory=self._memory(), **parts, **facts)
        return self._wait()

    def profiled(self, profile: Any) -> None:
        """`profile.start()` and `.stop()` enclose a step when that is asked for; the latter returns its parts."""
        self._asked = profile

    def _wait(self) -> bool:
        line = sys.stdin.readline().strip()
        if line not in ("step", "profile"):
            return False
        if line == "profile":
            self._profile = self._asked
            self._profile.start()
        self._wall, self._clock = time.perf_counter(), self._now()
        return True

    def _now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def _memory(self) -> int:
        return torch.cuda.max_memory_allocated() if self.cuda else status("VmHWM") - self._before

    def _say(self, **content: Any) -> None:
        self._answers.write(json.dumps(content) + "\n")
        self._answers.flush()


def _versions() -> dict[str, str]:
    installed = {item.metadata["Name"]: item.version for item in metadata.distributions()}
    return {name: installed[name] for name in PACKAGES if name in installed}


def status(name: str) -> int:
    """Bytes of a field of this process. Not getrusage's peak: that is inherited from the process that started it."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}; this benchmark needs Linux.")
