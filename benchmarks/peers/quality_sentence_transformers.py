"""sentence-transformers' trainer on the causal model."""

from __future__ import annotations

import tempfile
import time
from typing import Any

from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import TrainerCallback

from benchmarks.peers.quality_wire import Job, serve

COLUMNS = ("anchor", "positive", "negative")
FIRST = 3
"""Steps that are not timed: what is made once is made in them."""


def perform(job: Job) -> dict[str, Any]:
    """Load, train if there is a folder for it, encode. See `Job`."""
    model = SentenceTransformer(job.start or job.base, device="cpu")
    facts: dict[str, Any] = {}
    if job.out is not None:
        facts = _train(model, job)
        model.save_pretrained(job.out, create_model_card=False)
    if job.vectors is not None:
        model.max_seq_length = job.max_length
        job.give(model.encode(job.encode, show_progress_bar=False))
    return facts


class Clock(TrainerCallback):
    """Says what a step takes, once the first few are done."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One more step is done."""
        self.ends.append(time.monotonic())

    def step(self) -> float:
        """Seconds of a step."""
        timed = self.ends[min(FIRST, len(self.ends) - 2) :]
        return (timed[-1] - timed[0]) / (len(timed) - 1)


def _train(model: SentenceTransformer, job: Job) -> dict[str, Any]:
    settings = job.settings
    alike = job.stage == "simcse"
    rows = [[text, text] for text in job.texts] if alike else job.examples
    columns = {name: list(column) for name, column in zip(COLUMNS, zip(*rows, strict=True), strict=False)}
    if alike:
        for module in model.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = settings["dropout"]
    model.max_seq_length = settings["max_length"]
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder,
            max_steps=settings["steps"],
            per_device_train_batch_size=settings["batch_size"],
            learning_rate=settings["learning_rate"],
            lr_scheduler_type="linear",
            warmup_steps=round(settings["warm_up"] * settings["steps"]),
            # What it recommends for this loss; of texts that are their own positives it would take none.
            batch_sampler="batch_sampler" if alike else "no_duplicates",
            seed=job.seed,
            bf16=job.precision == "bf16",
            use_cpu=True,
            dataloader_drop_last=True,
            logging_strategy="no",
            save_strategy="no",
            eval_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        clock = Clock()
        trainer = SentenceTransformerTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_dict(columns),
            loss=MultipleNegativesRankingLoss(model, scale=1 / settings["temperature"]),
            callbacks=[clock],
        )
        begun = time.monotonic()
        done = trainer.train()
    facts = {"seconds": time.monotonic() - begun, "seconds of a step": clock.step()}
    model.max_seq_length = job.max_length
    return {**facts, "steps": done.global_step, "loss": done.training_loss}


if __name__ == "__main__":
    serve(perform)
