"""Step 3b: supervised contrastive learning. A query belongs to its positive, not to any other document of the batch."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bothways.data import Example, Origin, origins_of
from bothways.encoder import Encoder
from bothways.errors import ConfigError, DataError
from bothways.text import TextIds, check_texts
from bothways.training.batches import Batch, Order, numbered, same_meaning
from bothways.training.contrastive import check_dims, contrastive_parts, contrastive_scores
from bothways.training.dropout import Dropout, dropout_of
from bothways.training.loop import Cut, Part, Place, train
from bothways.training.losses import LearnableTemperature
from bothways.training.objective import Pairs, objective
from bothways.training.rows import data_facts, hold_out, shares_of, tokenise
from bothways.training.settings import Supervised
from bothways.training.tuning import TEMPERATURE

MANY = 0.1
"""Share of an epoch's examples; if more than that are left out for their texts, the way out is said."""
LISTED = 5
"""So many sources are named."""


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

    A batch is of one source's examples (`settings.batching`), no two of which have a query or positive in common. Every
    other document of it is a negative of a query, unless it is the text of one of that query's positives.
    What the source's policy says of negatives, directions and temperature holds for its batches; where its examples
    have scores, `settings.graded_loss` is what they are learnt with.
    `held_out` are examples to measure loss and accuracy on; None keeps back `settings.held_out_items` of `examples`.
    With a `checkpoint_dir` the run can be resumed (see `training.loop.train`).

    Raises TrainingError if the run fails, DataError if there is no example, or a source has scores for some of its
    examples only, ConfigError for batches that mix sources of different policies.
    Source: LLM2Vec (arXiv 2404.05961), sec. 4.1.
    """
    settings = Supervised() if settings is None else settings
    train_examples, held_out = hold_out(examples, held_out, settings)
    with dropout_of(encoder.model, settings.dropout) as dropout, learnt_temperature(encoder, settings) as learnt:
        task = _Task(encoder, train_examples, held_out, settings, dropout, learnt)
        train(task, settings, checkpoint_dir=checkpoint_dir, resume=resume, show_progress=show_progress)
    if learnt is not None:
        encoder.record = encoder.record.amended(temperature=learnt().item())
    return encoder


class _Task:
    """Queries against the documents of their batch."""

    name = "supervised"

    def __init__(
        self,
        encoder: Encoder,
        examples: Sequence[Example],
        held_out: Sequence[Example],
        settings: Supervised,
        dropout: Dropout,
        learnt: LearnableTemperature | None = None,
    ) -> None:
        check_dims(encoder, settings)
        self.encoder, self.settings, self.dropout = encoder, settings, dropout
        self.facts: Mapping[str, Any] = {"data": data_facts("supervised", examples, held_out)}
        self.train, self.held_out = _Rows(encoder, examples, settings), _Rows(encoder, held_out, settings)
        self.sources = origins_of(examples) or [Origin("examples", 1.0, len(examples), 0)]
        apart = settings.batching == "homogeneous"
        if not apart:
            _check_alike(self.sources)
        shares = shares_of(examples, size_exponent=settings.size_exponent, apart=apart)
        texts = _texts(examples, self.sources)
        self.order = Order(shares, settings.batch_size, settings.seed, apart=apart, texts=texts)
        graded = _graded(examples, self.sources)
        if not apart and len(set(graded)) > 1:
            raise ConfigError(
                'Supervised(batching="mixed"): some sources have scores and some have none, which are learnt with '
                'different losses. Use batching="homogeneous".'
            )
        self.of_share = [
            objective(settings, source.policy, graded=scored, learnt=learnt)
            for source, scored in zip(self.sources, graded, strict=True)
        ]
        self.of_held_out = {scored: objective(settings, graded=scored, learnt=learnt) for scored in (False, True)}
        self.longest = max(self.train.longest, self.held_out.longest)

    def start(self, cut: Cut) -> str:
        """What dropout there is, and what the batches are."""
        return "; ".join([str(self.dropout), *_about(self.order, [source.name for source in self.sources])])

    def parts(self, batch: Batch, place: Place, cut: Cut) -> Iterator[Part]:
        """The loss of the batch, as its source's policy says."""
        pairs, loss = self.train.pairs(batch.items, batch.visits), self.of_share[batch.share]
        seed = (self.settings.seed, batch.step)
        return contrastive_parts(self.encoder, pairs, loss, self.settings, seed, place, cut)

    def scores(self, cut: Cut) -> dict[str, float]:
        """Loss and accuracy on held-out examples, in batches of the training size, without dropout.

        As the stage says, whichever source they are of; graded pairs apart.
        """
        self.encoder.eval()
        size, examples = self.settings.batch_size, self.held_out.examples
        batches = []
        for scored in (False, True):
            own = [i for i, example in enumerate(examples) if (example.score is not None) == scored]
            cuts = (own[start : start + size] for start in range(0, len(own), size))
            batches += [(self.held_out.pairs(items), self.of_held_out[scored]) for items in cuts]
        return contrastive_scores(self.encoder, batches, (self.settings.seed,), cut)


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
        given = [self.examples[i].score for i in items]
        scores = [score for score in given if score is not None]
        return Pairs(
            [self.queries[i] for i in items],
            documents,
            ignore,
            list(owners),
            scores if len(scores) == len(items) else None,
        )

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


def _texts(examples: Sequence[Example], sources: Sequence[Origin]) -> NDArray[np.int64]:
    """Numbers of the query and the positive of each example, equal where the texts are, whatever the instructions."""
    texts = numbered(text for example in examples for text in (example.query, example.positive)).reshape(-1, 2)
    start = 0
    for source in sources:
        if not source.policy.in_batch:
            # No example meets the texts of another one: only itself must not be there twice.
            own = np.arange(2 * start, 2 * (start + source.rows)).reshape(-1, 2)
            texts[start : start + source.rows] = texts.size + own
        start += source.rows
    return texts


def _graded(examples: Sequence[Example], sources: Sequence[Origin]) -> list[bool]:
    """Of each source, whether its examples have scores. Raises DataError where some have and some have not."""
    found, start = [], 0
    for source in sources:
        having = [example.score is not None for example in examples[start : start + source.rows]]
        if any(having) and not all(having):
            raise DataError(
                f"{source.name}: {sum(having):,} of {len(having):,} examples have a score. Give all of them one, or "
                "put the others into a source of their own."
            )
        found.append(any(having))
        start += source.rows
    return found


@contextmanager
def learnt_temperature(encoder: Encoder, settings: Supervised) -> Iterator[LearnableTemperature | None]:
    """The temperature that is trained along with the encoder, as a part of it for the length of the stage."""
    if not settings.learn_temperature:
        yield None
        return
    learnt = LearnableTemperature(settings.temperature).to(encoder.device)
    encoder.add_module(TEMPERATURE, learnt)
    try:
        yield learnt
    finally:
        delattr(encoder, TEMPERATURE)


def _check_alike(sources: Sequence[Origin]) -> None:
    """Raises ConfigError if they differ in policy."""
    first = sources[0]
    for other in sources:
        for name, value in asdict(first.policy).items():
            if (theirs := getattr(other.policy, name)) != value:
                raise ConfigError(
                    f'Supervised(batching="mixed"): {name} is {value} for {first.name} and {theirs} for {other.name}, '
                    'but a batch of several sources has only one. Use batching="homogeneous", or say the same of all.'
                )


def _about(order: Order, names: Sequence[str]) -> Iterator[str]:
    """How examples come into batches, and which do not."""
    apart = order.apart and len(names) > 1

    def listed(counts: Mapping[int, int]) -> str:
        most = sorted(counts, key=lambda share: -counts[share])
        named = [f"{names[share]} {counts[share]:,}" for share in most[:LISTED]]
        more = [f"{len(most) - LISTED} more"] if len(most) > LISTED else []
        return f" ({', '.join(named + more)})" if apart else ""

    if apart:
        yield f"each batch is of one of {len(names)} sources"
    if smaller := order.smaller():
        sizes = listed(smaller) if apart else f" ({smaller[0]})"
        yield f"one smaller batch an epoch where there are too few examples for one of {order.size}{sizes}"
    left_out = order.left_out(0)
    few = {share: left.few for share, left in left_out.items() if left.few}
    twice = {share: left.twice for share, left in left_out.items() if left.twice}
    if few:
        rest = f"{sum(few.values()):,} of {order.seen:,} examples"
        yield f"{rest}, others in each epoch, wait for the next one: too few for a batch{listed(few)}"
    if twice:
        count = sum(twice.values())
        yield f"{count:,} more in the first epoch: a text of theirs is in every batch with room{listed(twice)}"
        if count > MANY * order.seen:
            yield "with in_batch=false for a source its texts may stand together"
