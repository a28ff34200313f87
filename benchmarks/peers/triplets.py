"""What a contrastive step is made of: one batch of queries, positives and hard negatives of mixed lengths."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, ClassVar

from benchmarks.peers.condition import SPECIAL, Condition, words
from benchmarks.peers.wire import Job

TRIPLETS = "triplets.jsonl"
QUERY, DOCUMENT = (10, 0.4), (30, 0.5)
"""Median number of tokens, and the standard deviation of its logarithm. Words of open English data: queries 7 to 17 and
0.3 to 0.5 (questions about medicine, aerodynamics, Wikipedia), documents 20 to 170 and 0.4 to 0.65."""
SHORTEST = 3
COLUMNS = ("query", "positive", "negative")


@dataclass(frozen=True)
class TripletsJob(Job):
    """Every query belongs to its positive, not to any other positive or negative of the batch."""

    temperature: float = 0.05
    mini_batch: int = 0
    """Rows that go through the model at once where the gradient is cached; 0: it is not cached."""


@dataclass(frozen=True)
class Triplets(Condition):
    """`batch` examples of at most `tokens` tokens: all there are, so that every step of every variant has the same."""

    mini_batch: int = 0

    work: ClassVar[str] = "contrastive"
    one_batch: ClassVar[bool] = True

    def job(self, folder: Path, attention: str) -> TripletsJob:
        """What a worker is told."""
        return TripletsJob(**self.common(folder, attention), mini_batch=self.mini_batch)

    def lengths(self) -> dict[str, list[int]]:
        """Tokens of every text. Each column has the quantiles of its distribution, so that no draw is a lucky one."""
        rng, found = random.Random(0), {}
        for column, (median, spread) in zip(COLUMNS, (QUERY, DOCUMENT, DOCUMENT), strict=True):
            logarithm = NormalDist(math.log(median), spread)
            quantiles = [logarithm.inv_cdf((number + 0.5) / self.batch) for number in range(self.batch)]
            found[column] = [min(self.tokens, max(SHORTEST, round(math.exp(value)))) for value in quantiles]
            rng.shuffle(found[column])
        return found

    def write_rows(self, folder: Path) -> None:
        """Random words, as many as the lengths say."""
        size, rng = self.shape["vocab_size"], random.Random(1)
        word = words(size)
        rows = [
            {
                column: " ".join(word[rng.randrange(len(SPECIAL), size)] for _ in range(length))
                for column, length in zip(COLUMNS, lengths, strict=True)
            }
            for lengths in zip(*self.lengths().values(), strict=True)
        ]
        (folder / TRIPLETS).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def padding(self) -> dict[str, float]:
        """Tokens of one step, and how many times as many where rows that go through together are padded to the longest.

        Column by column, and in the order of the file.
        """
        tokens = padded = 0
        for lengths in self.lengths().values():
            for start in range(0, self.batch, self.mini_batch or self.batch):
                part = lengths[start : start + (self.mini_batch or self.batch)]
                tokens += sum(part)
                padded += len(part) * max(part)
        return {"tokens": tokens, "padding": padded / tokens}


def triplets(given: Job) -> list[dict[str, Any]]:
    """The examples: a text for each of the COLUMNS."""
    lines = (Path(given.folder) / TRIPLETS).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
