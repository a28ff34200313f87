"""sentence-transformers' trainer: MultipleNegativesRankingLoss, or the cached one, on a model that sees both ways."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.sentence_transformer.modules import Pooling

from benchmarks.peers.trainer import Steps, adapters, arguments, first_loss, train
from benchmarks.peers.triplets import COLUMNS, TripletsJob, triplets
from benchmarks.peers.wire import Gate, weights_dtype
from bothways.bidirectional.probe import probe


class ToldTrainer(SentenceTransformerTrainer):
    """Tells the loss of every step."""

    steps: Steps

    def compute_loss(self, *given: Any, **named: Any) -> torch.Tensor:
        """As it does."""
        loss = super().compute_loss(*given, **named)
        self.steps.told = {"loss": float(loss)}
        return loss


def main(given: TripletsJob) -> None:
    """As its documentation does; the config says that the model is not causal, and each layer is proved to follow."""
    gate = Gate(given.device)
    rows = triplets(given)
    data = Dataset.from_dict({column: [row[column] for row in rows] for column in COLUMNS})
    gate.before_model()
    transformer = Transformer(
        given.folder, model_kwargs={"attn_implementation": given.attention, "dtype": weights_dtype(given)}
    )
    transformer.auto_model.config.is_causal = False
    probe(transformer.auto_model).require_bidirectional()
    pooling = Pooling(transformer.get_embedding_dimension(), "mean")
    model = SentenceTransformer(modules=[transformer, pooling], device=given.device)
    if given.tune == "lora":
        model.add_adapter(adapters(given))
    scale = 1 / given.temperature
    loss: torch.nn.Module = (
        CachedMultipleNegativesRankingLoss(model, scale=scale, mini_batch_size=given.mini_batch)
        if given.mini_batch
        else MultipleNegativesRankingLoss(model, scale=scale)
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = ToldTrainer(
            model=model,
            args=arguments(given, folder, SentenceTransformerTrainingArguments),
            train_dataset=data,
            loss=loss,
        )
        trainer.steps = Steps(gate, {})
        trainer.steps.facts["loss"] = first_loss(trainer)
        train(trainer, trainer.steps)


if __name__ == "__main__":
    main(TripletsJob.given())
