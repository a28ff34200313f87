"""Sizes, decoders, stages, and the grid from which the settings of each side are chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.quality.data import TASKS

OURS, LLM2VEC, ST, RANDOM = "bothways", "llm2vec", "sentence-transformers", "random weights"
TRAINED = (OURS, LLM2VEC, ST)
"""Sides that learn something."""
CAUSAL, OPENED, AFTER_MNTP, AFTER_SIMCSE, LAST = "causal", "bidirectional", "+ MNTP", "+ SimCSE", "+ supervised"
PAPER = (CAUSAL, AFTER_MNTP, AFTER_SIMCSE, LAST)
"""What rises from left to right in the paper (LLM2Vec, tables 1 to 3)."""
CHAINS = {
    OURS: (OPENED, AFTER_MNTP, AFTER_SIMCSE, LAST),
    LLM2VEC: (OPENED, AFTER_MNTP, AFTER_SIMCSE, LAST),
    ST: (AFTER_SIMCSE, LAST),
}
STAGE = {OPENED: "bidirectional", CAUSAL: "causal", AFTER_MNTP: "mntp", AFTER_SIMCSE: "simcse", LAST: "supervised"}
"""Name in the tables -> what a job calls it."""

Chosen = Mapping[str, Mapping[str, float]]
"""Stage of a job -> the settings that are chosen."""
DEFAULT: Chosen = {
    "mntp": {"learning_rate": 1e-3},
    "simcse": {"learning_rate": 1e-4},
    "supervised": {"learning_rate": 1e-3, "temperature": 0.05},
}
"""Where nothing was chosen yet."""
GRID: Mapping[str, tuple[Mapping[str, float], ...]] = {
    "mntp": ({"learning_rate": 3e-4}, {"learning_rate": 1e-3}),
    "simcse": ({"learning_rate": 3e-5}, {"learning_rate": 2e-4}),
    "supervised": (
        {"learning_rate": 5e-4, "temperature": 0.02},
        {"learning_rate": 5e-4, "temperature": 0.05},
        {"learning_rate": 1.5e-3, "temperature": 0.02},
        {"learning_rate": 1.5e-3, "temperature": 0.05},
    ),
}
"""The same for every side and every decoder."""
CHOICE_SEED = 1000
"""Decides what is learnt from when settings are chosen: no seed of the test."""


@dataclass(frozen=True)
class Decoder:
    """A decoder, what it is judged by, and how much it reads."""

    name: str
    folder: str | None
    """Under the folder of models; None: the one that comes with bothways."""
    tasks: tuple[str, ...] = TASKS
    reads: int = 64
    """Tokens of a text in the contrastive stages."""
    encodes: int = 128
    """Tokens of a text that is judged."""
    batch: int = 64
    """Items of a contrastive step."""


EMBEDDED = Decoder("embedded", None)
# A token of this one is a letter.
BABYLLAMA = Decoder("babyllama-tok105", "babyllama-tok105", ("sts-b", "trec-qc"), reads=192, encodes=256, batch=32)
DECODERS = {decoder.name: decoder for decoder in (EMBEDDED, BABYLLAMA)}


@dataclass(frozen=True)
class Size:
    """How much is done."""

    tokens: int = 300_000
    """Training tokens of a stage."""
    block: int = 128
    """Tokens of a row of MNTP, which has `blocks` of them in a step."""
    blocks: int = 32
    most: int | None = None
    """Rows of a task; None: all."""


TINY = Size(tokens=1000, block=32, blocks=8, most=40)


def tiny(decoder: Decoder) -> Decoder:
    """The same with small batches, for a run that only has to run."""
    return replace(decoder, reads=16, encodes=24, batch=8)


def stage_settings(stage: str, decoder: Decoder, size: Size, items: int, chosen: Chosen) -> dict[str, Any]:
    """What a job of that stage is given; `items` are the texts or triplets there are for it, seen once."""
    if stage == "mntp":
        shape = {"steps": size.tokens // (size.block * size.blocks), "batch_size": size.blocks}
        fixed: dict[str, Any] = {**shape, "block_size": size.block, "mask_rate": 0.2}
    else:
        fixed = {
            "steps": max(1, items // decoder.batch),
            "batch_size": decoder.batch,
            "max_length": decoder.reads,
            **({"temperature": 0.05, "dropout": 0.3} if stage == "simcse" else {}),
        }
    return {**fixed, "warm_up": 0.1, **chosen[stage]}
