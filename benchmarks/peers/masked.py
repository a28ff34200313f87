"""What an MNTP step is made of: rows of equal length, and one masked batch on which all must compute the same loss."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from benchmarks.peers.condition import SPECIAL, Condition, words
from benchmarks.peers.wire import Job

if TYPE_CHECKING:
    import torch

TEXTS, BATCH = "texts.txt", "batch.json"
"""One row of tokens, as words, per line; and the masked batch."""
BATCHES = 8
"""Batches until the rows come round again."""


@dataclass(frozen=True)
class MaskedJob(Job):
    """Hide a share of the tokens, and predict them."""

    mask_rate: float = 0.2


@dataclass(frozen=True)
class Masked(Condition):
    """Rows of `tokens` tokens each."""

    work: ClassVar[str] = "mntp"

    def job(self, folder: Path, attention: str) -> MaskedJob:
        """What a worker is told."""
        return MaskedJob(**self.common(folder, attention))

    def write_rows(self, folder: Path) -> None:
        """Rows of random words, and the first of them masked."""
        size = self.shape["vocab_size"]
        word, rng = words(size), random.Random(0)
        ids = [[rng.randrange(len(SPECIAL), size) for _ in range(self.tokens)] for _ in range(BATCHES * self.batch)]
        (folder / TEXTS).write_text("\n".join(" ".join(word[i] for i in row) for row in ids) + "\n", encoding="utf-8")
        masked = [[(token, rng.random() < MaskedJob.mask_rate) for token in row] for row in ids[: self.batch]]
        batch = {
            "input_ids": [[SPECIAL.index("_") if hidden else token for token, hidden in row] for row in masked],
            "labels": [[token if hidden else -100 for token, hidden in row] for row in masked],
        }
        (folder / BATCH).write_text(json.dumps(batch), encoding="utf-8")


def texts(given: MaskedJob) -> list[str]:
    """The rows to train on."""
    return (Path(given.folder) / TEXTS).read_text(encoding="utf-8").splitlines()


def masked_batch(given: MaskedJob) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels (-100 where nothing is predicted), both int64 (rows, tokens)."""
    import torch

    found = json.loads((Path(given.folder) / BATCH).read_text(encoding="utf-8"))
    return torch.tensor(found["input_ids"]), torch.tensor(found["labels"])
