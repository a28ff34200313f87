"""Step 3a: unsupervised contrastive learning. Two dropout views of a text belong together, other texts do not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from bothways.encoder import Encoder
from bothways.errors import TrainingError
from bothways.text import TextIds, check_texts
from bothways.training.batches import Batch, Order, same_meaning
from bothways.training.contrastive import check_dims, contrastive_parts, contrastive_scores
from bothways.training.dropout import Dropout, dropout_of
from bothways.training.gradcache import embed_all
from bothways.training.loop import Cut, Part, Place, train
from bothways.training.objective import Pairs, objective
from bothways.training.rows import data_facts, hold_out, shares_of, tokenise
from bothways.training.settings import SimCSE

HELD_OUT = 2**31
"""Stands where the step does when dropout of held-out texts is drawn: always the same."""
SAME = 1e-6
"""Views whose cosine is closer to 1 than this are the same view."""


def simcse(
    encoder: Encoder,
    texts: Sequence[str],
    settings: SimCSE | None = None,
    *,
    held_out: Sequence[str] | None = None,
    checkpoint_dir: str | Path | None = None,
    resume: bool = False,
    show_progress: bool = True,
) -> Encoder:
    """Train the encoder, in place, to tell texts apart by two dropout views of each; returns it with its record.

    `held_out` are texts to measure the loss on; None keeps back `settings.held_out_items` of `texts`.

    Raises TrainingError if the two views of the first batch do not differ or the run fails, DataError without a text.
    Source: Gao et al. 2021 (arXiv 2104.08821); LLM2Vec (arXiv 2404.05961), sec. 2.3.
    """
    settings = SimCSE() if settings is None else settings
    check_texts(texts, "simcse")
    train_texts, held_out = hold_out(texts, None if held_out is None else check_texts(held_out, "simcse"), settings)
    with dropout_of(encoder.model, settings.dropout, settings.embedding_dropout) as dropout:
        task = _Task(encoder, train_texts, held_out, settings, dropout)
        return train(task, settings, checkpoint_dir=checkpoint_dir, resume=resume, show_progress=show_progress)


class _Task:
    """Every text against itself under another dropout."""

    name = "simcse"

    def __init__(
        self, encoder: Encoder, texts: Sequence[str], held_out: Sequence[str], settings: SimCSE, dropout: Dropout
    ) -> None:
        check_dims(encoder, settings)
        self.encoder, self.settings, self.dropout = encoder, settings, dropout
        self.texts, self.held_out, self.objective = texts, held_out, objective(settings)
        self.facts: Mapping[str, Any] = {"data": data_facts("simcse", texts, held_out)}
        self.rows = tokenise(encoder, texts, max_length=settings.max_length)
        self.held_out_rows = tokenise(encoder, held_out, max_length=settings.max_length)
        self.order = Order(shares_of(texts), settings.batch_size, settings.seed)
        self.longest = max(len(row) for row in [*self.rows, *self.held_out_rows])

    def start(self, cut: Cut) -> str:
        """The cosine of the two views of the first texts, with dropout on the embeddings where no other reaches them.

        Raises TrainingError if the views are the same.
        """
        rows, dropout, settings = self.rows[: self.settings.batch_size], self.dropout, self.settings
        cosine = self._cosine(rows, cut)
        if cosine > 1 - SAME and settings.dropout and settings.embedding_dropout is None and not dropout.embeddings:
            dropout.embeddings, dropout.why = settings.dropout, "attention with it computes the same as without"
            cosine = self._cosine(rows, cut)
        if cosine > 1 - SAME:
            raise TrainingError(
                f"simcse: the two views of a text do not differ (mean cosine {cosine:.7f}; {dropout}), so that there "
                "is nothing to learn. Set dropout, for example dropout=0.3, or embedding_dropout=0.1."
            )
        self.facts = {**self.facts, "dropout": str(dropout), "cosine_of_views": cosine}
        return f"{self.dropout}; cosine of two views {cosine:.4f}"

    @torch.no_grad()
    def _cosine(self, rows: Sequence[TextIds], cut: Cut) -> float:
        seed = self.settings.seed
        first, second = (embed_all(self.encoder, rows, cut, (seed, HELD_OUT, view)) for view in (0, 1))
        return float(F.cosine_similarity(first, second).mean())

    def parts(self, batch: Batch, place: Place, cut: Cut) -> Iterator[Part]:
        """The loss of the batch: each text's first view against every second view."""
        pairs = _views([self.texts[i] for i in batch.items], [self.rows[i] for i in batch.items])
        seed = (self.settings.seed, batch.step)
        return contrastive_parts(self.encoder, pairs, self.objective, self.settings, seed, place, cut)

    def scores(self, cut: Cut) -> dict[str, float]:
        """Loss and accuracy on held-out texts, in batches of the training size, always under the same dropout."""
        self.encoder.train()
        size, texts, rows = self.settings.batch_size, self.held_out, self.held_out_rows
        cuts = (slice(start, start + size) for start in range(0, len(texts), size))
        batches = ((_views(texts[cut], rows[cut]), self.objective) for cut in cuts)
        return contrastive_scores(self.encoder, batches, (self.settings.seed, HELD_OUT), cut)


def _views(texts: Sequence[str], rows: list[TextIds]) -> Pairs:
    return Pairs(rows, rows, same_meaning(texts, texts), list(range(len(rows))))
