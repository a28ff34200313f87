"""Step 2: masked next token prediction, which teaches a decoder to use the tokens it can now see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bothways.data import Texts
from bothways.encoder import Encoder
from bothways.errors import ConfigError, DataError, TrainingError
from bothways.head import Head
from bothways.packing import Rows, packing
from bothways.training.batches import Batch, Order
from bothways.training.loop import Cut, Part, Place, train
from bothways.training.losses import rows_per_chunk, token_cross_entropy
from bothways.training.mask_row import NEW, make_row
from bothways.training.masking import NOT_PREDICTED, Masking, choose_mask_token
from bothways.training.randomness import seed_everything
from bothways.training.rows import data_facts, hold_out_tokens, read_tokens, shares_of
from bothways.training.settings import MNTP
from bothways.training.task import shares
from bothways.training.tokens import Blocks, Tokens
from bothways.training.words import words_of

WHOLE = 2**31
"""More tokens than a text has."""
HELD_OUT = 2**31
"""Stands where the epoch does when masks of held-out rows are drawn: always the same ones."""


def mntp(
    encoder: Encoder,
    texts: Sequence[str] | Texts,
    settings: MNTP | None = None,
    *,
    held_out: Sequence[str] | Texts | None = None,
    checkpoint_dir: str | Path | None = None,
    resume: bool = False,
    show_progress: bool = True,
) -> Encoder:
    """Train the encoder, in place, to predict hidden tokens of the texts; returns it with the stage in its record.

    `held_out` are texts to measure loss and accuracy on; None keeps back `settings.held_out_items` of `texts`. With a
    `checkpoint_dir` the run can be resumed (see `training.loop.train`). Files and data sets (`bothways.data.Texts`) are
    streamed, tokenised once, and kept on disk, not in memory.

    A causal encoder predicts each hidden token from what stands before it alone. It learns the texts so, but not to
    look ahead: no step of LLM2Vec, but the control that tells what comes of the texts from what comes of direction.

    Raises TrainingError if the encoder has no language-model head or the run fails, ConfigError for settings that do
    not fit the model, DataError if there is no text.
    Source: LLM2Vec (arXiv 2404.05961), sec. 2.2.
    """
    settings = MNTP() if settings is None else settings
    task = _Task(encoder, texts, held_out, settings)
    train(task, settings, checkpoint_dir=checkpoint_dir, resume=resume, show_progress=show_progress)
    if settings.merge_back or settings.tune == "qlora":
        _measure_merged(task)
    return encoder


@torch.no_grad()
def _measure_merged(task: _Task) -> None:
    """Add to the record what the held-out rows say of the final weights, which are not those of the last step.

    They are a mean with the weights from before the stage, or the adapters are no longer on layers of 4 bits.
    """
    encoder = task.encoder
    stage = encoder.record.stages[-1]
    with packing(encoder.model) as packed:
        scores = task.scores(partial(packed.groups, tokens=stage["settings"]["tokens_per_batch"]))
    encoder.record = encoder.record.amended(held_out_merged=scores)


def mntp_loss(encoder: Encoder, rows: Rows, labels: Rows, *, into_grad: bool = False) -> tuple[Float[Tensor, ""], int]:
    """Summed cross-entropy, in nats, of the labels that are not -100, and how many they are.

    `labels` has the hidden token at the position of each token of `rows` that is hidden. `into_grad`: see
    `token_cross_entropy`; for gradients that `backward` collects, and not where processes share the weights.
    Raises TrainingError if the encoder has no language-model head.
    """
    head = _head(encoder)
    hidden, wanted = _selected(encoder, rows, labels)
    return _cross_entropy(head, hidden, wanted, into_grad), len(wanted)


def _cross_entropy(head: Head, hidden: Tensor, labels: Tensor, into_grad: bool = False) -> Tensor:
    return token_cross_entropy(
        hidden,
        head.weight,
        labels,
        bias=head.bias,
        softcap=head.softcap,
        scale=head.scale,
        into_grad=into_grad,
    )


def _selected(encoder: Encoder, rows: Rows, labels: Rows) -> tuple[Float[Tensor, "rows dim"], Int[Tensor, " rows"]]:
    # Position t predicts token t + 1, as in pre-training, so the label of a masked token sits one step to the left.
    shifted = torch.from_numpy(np.concatenate([np.append(row[1:], NOT_PREDICTED) for row in labels]).astype(np.int64))
    # Selected on the CPU: a mask of the device's would have to wait for it.
    places = (shifted != NOT_PREDICTED).nonzero()[:, 0]
    states = encoder.token_states(rows)
    return states.index_select(0, places.to(states.device)), shifted[places].to(states.device)


def _head(encoder: Encoder) -> Head:
    if encoder.head is None:
        raise TrainingError(
            "mntp: this encoder has no language-model head to predict tokens with; its folder was saved without it. "
            f"It was made from {encoder.record.base}: convert that again, or name the folder of the base with --base."
        )
    return encoder.head


class _Task:
    """Rows of tokens, masked anew in every epoch."""

    name = "mntp"

    def __init__(
        self, encoder: Encoder, texts: Sequence[str] | Texts, held_out: Sequence[str] | Texts | None, settings: MNTP
    ) -> None:
        self.encoder, self.settings = encoder, settings
        head = _head(encoder)
        _check_length(encoder, settings)
        given = None if held_out is None else self._tokens(held_out)
        training, measured = hold_out_tokens(self._tokens(texts), given, settings)
        data = data_facts("mntp", training, measured)
        self.rows, self.held_out = self._rows(training), self._rows(measured)
        if not len(self.rows):
            raise DataError("mntp: no text has a token to predict besides its first one. Give longer texts.")
        self.order = Order(shares_of(self.rows), settings.batch_size, settings.seed)
        self.longest = max(int(rows.lengths.max(initial=0)) for rows in (self.rows, self.held_out))
        wish = settings.mask_token
        self.mask = make_row(encoder) if wish == NEW else choose_mask_token(encoder.tokenizer, wish)
        self.masking = Masking(
            scheme=settings.mask_scheme,
            mask_id=self.mask.id,
            vocab=min(len(encoder.tokenizer), head.weight.shape[0]),
            special=frozenset(encoder.tokenizer.all_special_ids),
            words=words_of(encoder.tokenizer) if settings.whole_words else None,
        )
        self.facts: Mapping[str, Any] = {"data": {**data, "rows": len(self.rows)}, "mask_token": asdict(self.mask)}

    def _tokens(self, texts: Sequence[str] | Texts) -> Tokens:
        whole = None if self.settings.block_size is None else WHOLE
        return read_tokens("mntp", self.encoder, texts, max_length=self.settings.max_length or whole)

    def _rows(self, texts: Tokens) -> Tokens | Blocks:
        size, bos = self.settings.block_size, self.encoder.tokenizer.bos_token_id
        if size is None:
            return texts.without(np.flatnonzero(texts.lengths < 2))
        return Blocks(texts, size, bos if texts.opens_with(bos) else None)

    def start(self, cut: Cut) -> str:
        """Which token masks, and why."""
        causal = self.encoder.settings.direction == "causal"
        alone = "; causal: hidden tokens are predicted from those before them alone" if causal else ""
        return f'mask token "{self.mask.token}" ({self.mask.why}){alone}'

    def parts(self, batch: Batch, place: Place, cut: Cut) -> Iterator[Part]:
        """Losses of some rows each, divided by the number of predicted tokens of the whole batch."""
        seed, rate = self.settings.seed, self.settings.mask_rate_of(batch.step)
        seen = zip(batch.items, batch.visits, strict=True)
        masked = [self.masking(self.rows[i], (seed, visit, i), rate) for i, visit in seen]
        predicted = sum(int(np.count_nonzero(labels != NOT_PREDICTED)) for _, labels in masked)
        for number, group in enumerate(shares([len(ids) for ids, _ in masked], place, cut)):
            seed_everything(seed, batch.step, place.rank, number)
            ids, labels = zip(*(masked[i] for i in group.rows), strict=True)
            loss, _ = mntp_loss(self.encoder, ids, labels, into_grad=not place.in_step)
            yield Part(loss * (group.weight / max(1, predicted)), sum(map(len, ids)))

    def scores(self, cut: Cut) -> dict[str, float]:
        """Loss in nats and accuracy over the hidden tokens of the held-out rows, always with the same masks.

        They are hidden at `mask_rate`, and besides at each of `held_out_rates` ("loss at 0.15").
        """
        self.encoder.eval()
        found = self._scores_at(self.settings.mask_rate, cut)
        for rate in self.settings.held_out_rates:
            found |= {f"{name} at {rate:g}": value for name, value in self._scores_at(rate, cut).items()}
        return found

    def _scores_at(self, rate: float, cut: Cut) -> dict[str, float]:
        head, seed = _head(self.encoder), self.settings.seed
        masked = [self.masking(row, (seed, HELD_OUT, i), rate) for i, row in enumerate(self.held_out)]
        loss, right, count = 0.0, 0, 0
        for group in cut([len(ids) for ids, _ in masked]):
            hidden, labels = _selected(self.encoder, *zip(*(masked[i] for i in group), strict=True))
            loss += float(_cross_entropy(head, hidden, labels))
            size = rows_per_chunk(head.weight)
            for rows, wanted in zip(hidden.split(size), labels.split(size), strict=True):
                right += int((head(rows).argmax(dim=1) == wanted).sum())
            count += len(labels)
        return {"loss": loss / count, "accuracy": right / count} if count else {}


def _check_length(encoder: Encoder, settings: MNTP) -> None:
    limit = getattr(encoder.model.config.get_text_config(), "max_position_embeddings", None)
    if settings.block_size is not None and limit and settings.block_size > limit:
        raise ConfigError(
            f"MNTP(block_size={settings.block_size}): this model was made for {limit} tokens. "
            f"Use block_size={limit} or less."
        )
