"""Distillation: the vectors of a teacher, a larger or better encoder, are what the student learns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from bothways.data import Example
from bothways.encoder import Encoder
from bothways.errors import ConfigError, DataError
from bothways.text import TextIds, check_texts
from bothways.training.batches import Batch, Order, same_meaning
from bothways.training.contrastive import check_dims, graphs_alive
from bothways.training.dropout import Dropout, dropout_of
from bothways.training.gradcache import embed_all, gradcache
from bothways.training.loop import Cut, Part, Place, train
from bothways.training.losses import FEWEST_TEXTS, cosine_distance, info_nce, similarity_kl, spread_out
from bothways.training.objective import at_prefixes
from bothways.training.rows import data_facts, hold_out, shares_of, tokenise
from bothways.training.settings import Distil
from bothways.training.teacher import Side, Teacher, procrustes, unit

SAMPLE = 2048
"""Texts that the projection is fitted on."""


def distil(
    encoder: Encoder,
    items: Sequence[str | Example],
    settings: Distil,
    *,
    held_out: Sequence[str | Example] | None = None,
    checkpoint_dir: str | Path | None = None,
    resume: bool = False,
    show_progress: bool = True,
) -> Encoder:
    """Train the encoder, in place, to give the vectors of `settings.teacher`; returns it with its record.

    `items` are texts, or examples, whose queries and positives are then the texts; with `settings.contrastive` above 0
    they must be examples, and a query is told apart from the other documents too. Where the dimensions differ, a fixed
    projection (see `teacher.procrustes`) takes the teacher's vectors to those of the student; it is fitted to the
    encoder as it is given. `held_out` is measured; None keeps back `settings.held_out_items`.

    Raises ConfigError for a teacher that is not there or texts where examples are needed, DataError for a text without
    a vector, TrainingError if the run fails.
    Source: Reimers & Gurevych 2020 (arXiv 2004.09813) for the vectors; Passalis & Tefas 2018 (arXiv 1803.10837) for the
    similarities.
    """
    if not settings.teacher:
        raise ConfigError(
            'Distil(teacher=""): there is nobody to learn from. Name a folder of sentence-transformers, or a .parquet '
            "file of vectors."
        )
    train_items, measured = hold_out(items, held_out, settings)
    with dropout_of(encoder.model, settings.dropout) as dropout:
        task = _Task(encoder, train_items, measured, settings, dropout)
        return train(task, settings, checkpoint_dir=checkpoint_dir, resume=resume, show_progress=show_progress)


class _Task:
    """Every text against the teacher's vector of it, and against the teacher's similarities to the others."""

    name = "distil"

    def __init__(
        self,
        encoder: Encoder,
        items: Sequence[str | Example],
        held_out: Sequence[str | Example],
        settings: Distil,
        dropout: Dropout,
    ) -> None:
        check_dims(encoder, settings)
        self.encoder, self.settings, self.dropout = encoder, settings, dropout
        data = data_facts("distil", items, held_out)
        self.order = Order(shares_of(items), settings.batch_size, settings.seed)
        teacher = Teacher(settings.teacher, device=str(encoder.device))
        self.rows, self.held_out = (_Rows(encoder, rows, settings, teacher) for rows in (items, held_out))
        if len(self.rows.columns) * len(items) < FEWEST_TEXTS:
            raise DataError(f"distil: {len(items)} items are too few to be similar to one another. Give more.")
        self.longest = max(self.rows.longest, self.held_out.longest)
        self.projection: Tensor | None = None
        marks = {"teacher": self.rows.fingerprint, "held_out_teacher": self.held_out.fingerprint}
        self.facts: Mapping[str, Any] = {"data": {**data, **marks}, "teacher_dim": self.rows.dim}

    def start(self, cut: Cut) -> str:
        """How the teacher's vectors reach the student's, before and after."""
        texts = [column.texts[i] for column in self.rows.columns for i in range(len(column.texts))][:SAMPLE]
        goals = np.concatenate([column.vectors for column in self.rows.columns])[:SAMPLE]
        own, wide = self.encoder.dim, self.rows.dim
        if own == wide or not self.settings.cosine:
            return f"{self.dropout}; teacher of {wide} dimensions"
        self.encoder.eval()
        with torch.no_grad():
            student = embed_all(self.encoder, texts, cut, (self.settings.seed,)).float().cpu().numpy()
        found = procrustes(goals, student)
        kept = float(np.linalg.norm(unit(goals) @ found) ** 2 / len(goals))
        self.projection = torch.from_numpy(found)
        self.facts = {**self.facts, "projection_keeps": kept}
        share = f"keeps {kept:.1%} of its vectors' squared length"
        return f"{self.dropout}; teacher of {wide} dimensions, projected to {own} ({share})"

    def parts(self, batch: Batch, place: Place, cut: Cut) -> Iterator[Part]:
        """The loss of the batch, in parts (see `gradcache`)."""
        self.encoder.train()
        settings, goal = self.settings, self.rows.goal(batch.items)
        return gradcache(
            self.encoder,
            goal.rows,
            lambda vectors: self._loss(vectors, goal),
            seed=(settings.seed, batch.step),
            place=place,
            cut=cut,
            alive=graphs_alive(settings),
        )

    @torch.no_grad()
    def scores(self, cut: Cut) -> dict[str, float]:
        """Loss of what is held out, and its mean cosine to the teacher, in batches of the training size."""
        self.encoder.eval()
        count, size = len(self.held_out), self.settings.batch_size
        loss = cosine = 0.0
        for start in range(0, count, size):
            goal = self.held_out.goal(range(start, min(start + size, count)))
            vectors = embed_all(self.encoder, goal.rows, cut, (self.settings.seed,))
            loss += float(self._loss(vectors, goal)) * goal.count
            if self.settings.cosine:
                cosine += (1 - float(cosine_distance(vectors, self._projected(goal, vectors)))) * goal.count
        if not count:
            return {}
        return {"loss": loss / count, **({"cosine": cosine / count} if self.settings.cosine else {})}

    def _loss(self, vectors: Float[Tensor, "rows dim"], goal: _Goal) -> Float[Tensor, ""]:
        settings = self.settings
        # A loss, though of nothing, also of the one or two texts that are left of what is held out.
        found = vectors.sum() * 0
        if settings.cosine:
            found = found + settings.cosine * cosine_distance(vectors, self._projected(goal, vectors))
        if settings.similarity or settings.contrastive:
            found = found + at_prefixes(partial(self._among, goal), vectors, settings.matryoshka)
        if settings.spread_out:
            found = found + settings.spread_out * sum(map(spread_out, vectors.split(goal.count)), torch.zeros(()))
        return found

    def _among(self, goal: _Goal, vectors: Float[Tensor, "rows dim"]) -> Float[Tensor, ""]:
        """What is asked of the vectors of a batch among one another, at any width."""
        settings, found = self.settings, vectors.sum() * 0
        if settings.similarity and len(vectors) >= FEWEST_TEXTS:
            taught = goal.vectors.to(vectors.device)
            kl = similarity_kl(vectors, taught, temperature=settings.similarity_temperature)
            found = found + settings.similarity * kl
        if settings.contrastive:
            queries, documents, ignore = vectors[: goal.count], vectors[goal.count :], goal.ignore
            assert ignore is not None
            contrast = info_nce(queries, documents, temperature=settings.temperature, ignore=ignore.to(vectors.device))
            found = found + settings.contrastive * contrast
        return found

    def _projected(self, goal: _Goal, vectors: Tensor) -> Tensor:
        taught = F.normalize(goal.vectors.to(vectors.device), dim=1)
        return taught if self.projection is None else taught @ self.projection.to(vectors.device)


@dataclass(frozen=True)
class _Goal:
    """A batch: its texts (queries, then documents, where there are both), and the teacher's vectors of them."""

    count: int
    rows: list[TextIds]
    vectors: Float[Tensor, "rows dim"]
    ignore: Tensor | None


@dataclass(frozen=True)
class _Column:
    texts: list[TextIds]
    vectors: NDArray[np.float32]


class _Rows:
    """The tokens of some items and the teacher's vectors of them: of texts, or of queries and their positives."""

    def __init__(self, encoder: Encoder, items: Sequence[str | Example], settings: Distil, teacher: Teacher) -> None:
        self.items = items
        examples = [item for item in items if isinstance(item, Example)]
        if settings.contrastive and len(examples) < len(items):
            raise ConfigError(
                f"Distil(contrastive={settings.contrastive:g}) needs examples (query and positive), but these are "
                "texts. Give examples, or contrastive=0."
            )
        self.fingerprint = ""
        self.columns: list[_Column] = []
        sides: list[tuple[Side, list[str], list[str | None]]]
        if examples:
            sides = [
                ("query", [e.query for e in examples], [e.query_instruction for e in examples]),
                ("document", [e.positive for e in examples], [e.document_instruction for e in examples]),
            ]
        else:
            sides = [("text", [item for item in items if isinstance(item, str)], [None] * len(items))]
        for side, texts, instructions in sides if len(items) else ():
            check_texts(texts, "distil")
            taught = teacher.teach(texts, side)
            self.columns.append(
                _Column(tokenise(encoder, texts, instructions, max_length=settings.max_length), taught.vectors)
            )
            self.fingerprint += taught.fingerprint
        self.dim = self.columns[0].vectors.shape[1] if self.columns else 0

    def __len__(self) -> int:
        return len(self.items)

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max((len(row) for column in self.columns for row in column.texts), default=0)

    def goal(self, items: Sequence[int]) -> _Goal:
        """What a batch of these items has to learn."""
        rows = [column.texts[i] for column in self.columns for i in items]
        vectors = torch.from_numpy(np.concatenate([column.vectors[list(items)] for column in self.columns]))
        chosen = [item for item in (self.items[i] for i in items) if isinstance(item, Example)]
        keys = [(example.query, example.query_instruction) for example in chosen]
        ignore = same_meaning(keys, [example.positive for example in chosen]) if chosen else None
        return _Goal(len(items), rows, vectors, ignore)
