"""The stages as anyone calls them: `convert`, `mntp`, `simcse`, `supervised`, `Encoder.encode`."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

from benchmarks.peers.quality_wire import Job
from bothways import MNTP, Encoder, SimCSE, Supervised, convert, mntp, simcse, supervised
from bothways.data import Example
from bothways.evaluation.baselines import random_weights
from bothways.folders import new_folder

SAME: dict[str, Any] = {"tune": "full", "held_out_items": 0, "save_every": 0}


def perform(job: Job) -> dict[str, Any]:
    """Convert or open, train if there is a folder for it, encode. See `Job`."""
    encoder = _opened(job)
    facts: dict[str, Any] = {}
    with warnings.catch_warnings():
        # Every text is read up to the same number of tokens, by all sides.
        warnings.filterwarnings("ignore", message=".*max_length.* were cut")
        if job.out is not None:
            begun = time.monotonic()
            _train(encoder, job)
            facts = {"seconds": time.monotonic() - begun, "steps": job.settings["steps"]}
            facts["loss"] = encoder.record.stages[-1].get("loss")
            with new_folder(Path(job.out), overwrite=True) as folder:
                encoder.save_pretrained(folder / "encoder")
        if job.vectors is not None:
            job.give(encoder.encode(job.encode))
    return facts


def _opened(job: Job) -> Encoder:
    if job.start is not None:
        return Encoder.from_pretrained(Path(job.start) / "encoder")
    causal = job.stage in ("causal", "random")
    encoder = convert(
        job.base, direction="causal" if causal else "bidirectional", dtype="float32", max_length=job.max_length
    )
    return random_weights(encoder, job.seed) if job.stage == "random" else encoder


def _train(encoder: Encoder, job: Job) -> None:
    settings = {**SAME, "seed": job.seed, "precision": job.precision, **job.settings}
    if job.stage == "mntp":
        mntp(encoder, job.texts, MNTP(**settings), show_progress=False)
    elif job.stage == "simcse":
        simcse(encoder, job.texts, SimCSE(**settings), show_progress=False)
    else:
        examples = [Example(query, positive, tuple(negatives)) for query, positive, *negatives in job.examples]
        supervised(encoder, examples, Supervised(**settings), show_progress=False)
