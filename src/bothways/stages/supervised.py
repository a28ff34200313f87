"""Step 3b: supervised contrastive learning. A query belongs to its positive, not to any other document of the batch."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bothways.data import Example
from bothways.encoder import Encoder
from bothways.text import TextIds, check_texts
from bothways.training.batches import Batch, same_meaning
from bothways.training.contrastive import Pairs, contrastive_parts, contrastive_scores
from bothways.training.dropout import dropout_of
from bothways.training.loop import Cut, Part, Place, train
from bothways.training.rows import data_facts, hold_out, shares_of, tokenise
from bothways.training.settings import Supervised


def supervised(
    encoder: Encoder,
    examples: Sequence[Example],
    settings: Supervised | None = None,
    *,
    held_out: Sequence[Example] | None = None,
    checkpoint_dir: str | Path | None = None,
    resume: bool = False,
    show_progress: bool = True,
) -> Encoder:
    """Train the encoder, in place, on queries and the documents that answer them; returns it with its record.

    Every other document of a batch is a negative of a query, unless it is the text of one of that query's positives.
    `held_out` are examples to measure loss and accuracy on; None keeps back `settings.held_out_items` of `examples`.
    With a `checkpoint_dir` the run can be resumed (see `training.loop.train`).

    Raises TrainingError if the run fails, DataError if there is no example.
    Source: LLM2Vec (arXiv 2404.05961), sec. 4.1.
    """
    settings = Supervised() if settings is None else settings
    train_examples, held_out = hold_out(examples, held_out, settings)
    with dropout_of(encoder.model, settings.dropout) as dropout:
        task = _Task(encoder, train_examples, held_out, settings, str(dropout))
        return train(task, settings, checkpoint_dir=checkpoint_dir, resume=resume, show_progress=show_progress)


class _Task:
    """Queries against the documents of their batch."""

    name = "supervised"

    def __init__(
        self,
        encoder: Encoder,
        examples: Sequence[Example],
        held_out: Sequence[Example],
        settings: Supervised,
        dropout: str,
    ) -> None:
        self.encoder, self.settings, self.dropout = encoder, settings, dropout
        self.facts: Mapping[str, Any] = {"data": data_facts("supervised", examples, held_out)}
        self.train, self.held_out = _Rows(encoder, examples, settings), _Rows(encoder, held_out, settings)
        self.shares = shares_of(examples)
        self.longest = max(self.train.longest, self.held_out.longest)

    def start(self, cut: Cut) -> str:
        """What dropout there is."""
        return self.dropout

    def parts(self, batch: Batch, place: Place, cut: Cut) -> Iterator[Part]:
        """The loss of the batch: each query against every document."""
        pairs = self.train.pairs(batch.items, batch.visits)
        seed = (self.settings.seed, batch.step)
        return contrastive_parts(self.encoder, pairs, self.settings, seed, place, cut)

    def scores(self, cut: Cut) -> dict[str, float]:
        """Loss and accuracy on held-out examples, in batches of the training size, without dropout."""
        self.encoder.eval()
        count, size = len(self.held_out.examples), self.settings.batch_size
        batches = (self.held_out.pairs(range(i, min(i + size, count))) for i in range(0, count, size))
        return contrastive_scores(self.encoder, batches, self.settings, (self.settings.seed,), cut)


class _Rows:
    """The tokens of some examples: a query, a positive and all hard negatives each."""

    def __init__(self, encoder: Encoder, examples: Sequence[Example], settings: Supervised) -> None:
        self.examples, self.settings = examples, settings
        queries = check_texts([example.query for example in examples], "supervised")
        documents = [text for example in examples for text in (example.positive, *example.negatives)]
        instructions = [item.document_instruction for item in examples for _ in range(1 + len(item.negatives))]
        limit = settings.max_length
        self.queries = tokenise(encoder, queries, [item.query_instruction for item in examples], max_length=limit)
        documents = check_texts(documents, "supervised")
        flat = iter(tokenise(encoder, documents, instructions, max_length=limit))
        self.documents: list[list[TextIds]] = [[next(flat) for _ in range(1 + len(e.negatives))] for e in examples]

    @property
    def longest(self) -> int:
        """Tokens of the longest of them."""
        return max((len(row) for rows in (self.queries, *self.documents) for row in rows), default=0)

    def pairs(self, items: Sequence[int], visits: Sequence[int] | None = None) -> Pairs:
        """Queries, positives, then hard negatives: `visits[n]` is how often `items[n]` was seen before."""
        seen = zip(items, visits or [0] * len(items), strict=True)
        drawn = [(owner, 1 + j) for owner, (i, visit) in enumerate(seen) for j in self._negatives(i, visit)]
        owners, numbers = zip(*[(owner, 0) for owner in range(len(items))], *drawn, strict=True)
        places = [(items[owner], j) for owner, j in zip(owners, numbers, strict=True)]
        keys = [(self.examples[i].query, self.examples[i].query_instruction) for i in items]
        ignore = same_meaning(keys, [self._text(i, j) for i, j in places])
        documents = [self.documents[i][j] for i, j in places]
        return Pairs([self.queries[i] for i in items], documents, ignore, list(owners))

    def _negatives(self, item: int, visit: int) -> list[int]:
        count = len(self.examples[item].negatives)
        if count <= self.settings.negatives:
            return list(range(count))
        return sorted(
            random.Random(f"{self.settings.seed}/{visit}/{item}").sample(range(count), self.settings.negatives)
        )

    def _text(self, item: int, number: int) -> str:
        example = self.examples[item]
        return example.positive if number == 0 else example.negatives[number - 1]
