"""llm2vec 0.2.3's supervised step, in its own environment: its model, tokenisation, pooling and loss, and the Trainer.

The package has these parts; the trainer that joins them is a script beside it, and is joined here in the same way.
"""

from __future__ import annotations

import tempfile
from typing import Any

# peft looks for torch.distributed.tensor without importing it.
import torch.distributed.tensor
from llm2vec import LLM2Vec
from llm2vec.loss.utils import load_loss
from llm2vec.models import LlamaBiModel
from peft import get_peft_model
from transformers import PreTrainedTokenizerFast, Trainer

from benchmarks.peers.trainer import Steps, adapters, arguments, first_loss, train
from benchmarks.peers.triplets import COLUMNS, TripletsJob, triplets
from benchmarks.peers.wire import Gate, weights_dtype

SEPARATOR = "!@#$%^&*()"
"""Its data puts this before a text, after the instruction if there is one."""


class SupervisedTrainer(Trainer):
    """Embeds a batch column by column, each padded by itself, and hands the vectors to the loss."""

    steps: Steps
    criterion: Any

    def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> torch.Tensor:
        """HardNegativeNLLLoss of queries, positives, negatives."""
        loss = self.criterion(*(model(dict(column)) for column in inputs))
        self.steps.told = {"loss": float(loss)}
        return loss


def main(given: TripletsJob) -> None:
    """As its script does, but for full training, of which it has none: there the same model is trained as it is."""
    gate = Gate(given.device)
    rows = triplets(given)
    gate.before_model()
    model = LlamaBiModel.from_pretrained(
        given.folder, attn_implementation=given.attention, torch_dtype=weights_dtype(given)
    )
    # The file that newer tokenizers wrote is read, the settings beside it are not: their class has another name now.
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=f"{given.folder}/tokenizer.json",
        pad_token="</s>",
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )
    encoder = LLM2Vec(model=model, tokenizer=tokenizer, pooling_mode="mean", max_length=given.tokens)
    if given.tune == "lora":
        encoder.model = get_peft_model(encoder.model, adapters(given))

    def collate(batch: list[dict[str, str]]) -> list[Any]:
        texts = ([encoder.prepare_for_tokenization(SEPARATOR + row[column]) for row in batch] for column in COLUMNS)
        return [encoder.tokenize(column) for column in texts]

    with tempfile.TemporaryDirectory() as folder:
        trainer = SupervisedTrainer(
            model=encoder,
            args=arguments(given, folder, remove_unused_columns=False),
            train_dataset=rows,
            data_collator=collate,
        )
        trainer.criterion = load_loss("HardNegativeNLLLoss", scale=1 / given.temperature)
        trainer.steps = Steps(gate, {})
        trainer.steps.facts["loss"] = first_loss(trainer)
        train(trainer, trainer.steps)


if __name__ == "__main__":
    main(TripletsJob.given())
