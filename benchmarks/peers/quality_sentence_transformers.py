"""sentence-transformers' trainer on the causal model, for as long as our stages took."""

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
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback

from benchmarks.peers.quality_wire import Job, serve
from benchmarks.peers.wire import MANY_STEPS

COLUMNS = ("anchor", "positive", "negative")


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
    """Ends the training when the time is up, and says which share of it has passed."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.steps, self.begun = seconds, 0, time.monotonic()

    def share(self) -> float:
        """Of the time, 0 to 1."""
        return min(1.0, (time.monotonic() - self.begun) / self.seconds)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """One more step is done."""
        self.steps = state.global_step
        control.should_training_stop = self.share() >= 1
        return control


class Timed(SentenceTransformerTrainer):
    """Its learning rate rises and falls with the time, as ours with the steps."""

    clock: Clock
    warm_up: float

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """A linear rise and a linear fall to 0."""
        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, lambda _: self.rate(self.clock.share()))
        return self.lr_scheduler

    def rate(self, share: float) -> float:
        """The factor of the peak learning rate after that share of the time."""
        if share < self.warm_up:
            # The first step is not to be lost.
            return max(share, 0.02) / self.warm_up
        return (1 - share) / (1 - self.warm_up)


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
    assert job.seconds is not None
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder,
            max_steps=MANY_STEPS,
            per_device_train_batch_size=settings["batch_size"],
            learning_rate=settings["learning_rate"],
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
        clock = Clock(job.seconds)
        trainer = Timed(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_dict(columns),
            loss=MultipleNegativesRankingLoss(model, scale=1 / settings["temperature"]),
            callbacks=[clock],
        )
        trainer.clock, trainer.warm_up = clock, settings["warm_up"]
        clock.begun = time.monotonic()
        done = trainer.train()
    seconds = time.monotonic() - clock.begun
    model.max_seq_length = job.max_length
    return {"seconds": seconds, "steps": clock.steps, "loss": done.training_loss}


if __name__ == "__main__":
    serve(perform)
