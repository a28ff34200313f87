"""What the quality benchmark asks of every side: one stage from a folder to a folder, and the vectors of some texts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Job:
    """One stage, its vectors, or both."""

    base: str
    """Folder of the decoder, in the form that this side reads."""
    start: str | None = None
    """Folder of this side's model after the stage before; None: the base, untrained."""
    stage: str = ""
    """mntp, simcse or supervised; causal, bidirectional or random for a model that nothing is taught."""
    settings: dict[str, Any] = field(default_factory=dict)
    """steps, batch_size, learning_rate, warm_up, max_length, and what the stage has besides."""
    texts: list[str] = field(default_factory=list)
    """What mntp and simcse learn from."""
    examples: list[list[str]] = field(default_factory=list)
    """What supervised learns from: query, positive, negative."""
    seed: int = 0
    precision: str = "fp32"
    """bf16 or fp32: what training computes in. Vectors are always computed in float32."""
    out: str | None = None
    """Folder for the trained model; None: nothing is trained."""
    max_length: int = 128
    """Tokens read of a text that is encoded."""
    encode: list[str] = field(default_factory=list)
    """Texts whose vectors are wanted."""
    vectors: str | None = None
    """File for them: float32, one row a text, of any length."""

    def write(self, path: Path) -> None:
        """For a worker's command line."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    def give(self, rows: Any) -> None:
        """Write the vectors of `encode`."""
        assert self.vectors is not None
        np.save(self.vectors, np.asarray(rows, dtype=np.float32))


Perform = Callable[[Job], dict[str, Any]]
"""Does a job; says the seconds and steps of its training, and what else there is to know."""


def serve(perform: Perform) -> None:
    """A worker's whole life: the job's file and the answer's stand on the command line."""
    job, answer = map(Path, sys.argv[1:3])
    found = perform(Job(**json.loads(job.read_text(encoding="utf-8"))))
    answer.write_text(json.dumps(found), encoding="utf-8")
