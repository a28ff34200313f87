"""transformers' own Trainer, in either environment, held between two steps."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig
from transformers import Trainer, TrainerCallback, TrainingArguments

from benchmarks.peers.wire import MANY_STEPS, Gate, Job

LINEAR = ["q_proj", "v_proj", "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Steps(TrainerCallback):
    """Holds the Trainer at the gate after every step, so that a step is all it does from one to the next."""

    def __init__(self, gate: Gate, facts: dict[str, Any]) -> None:
        self.gate, self.facts = gate, facts
        self.told: dict[str, Any] = {}
        """What is told of the next step that is done."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """The Trainer is ready for its first step."""
        control.should_training_stop = not self.gate.open(**self.facts)
        return control

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Forward, backward, clipping, optimiser and schedule are done."""
        control.should_training_stop = not self.gate.step(**self.told)
        return control


def arguments(
    given: Job, folder: str, kind: type[TrainingArguments] = TrainingArguments, **more: Any
) -> TrainingArguments:
    """The Trainer's settings, its defaults but for what the job says; nothing but training is done."""
    return kind(
        output_dir=folder,
        per_device_train_batch_size=given.batch,
        max_steps=MANY_STEPS,
        learning_rate=given.learning_rate,
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=given.device == "cpu",
        bf16=given.dtype == "bfloat16",
        **more,
    )


def adapters(given: Job) -> LoraConfig:
    """On every linear layer of the decoder layers."""
    return LoraConfig(
        r=given.lora_r,
        lora_alpha=given.lora_alpha,
        target_modules=LINEAR,
        lora_dropout=given.lora_dropout,
        bias="none",
        task_type=None,
    )


def train(trainer: Trainer, steps: Steps) -> None:
    """Train until the gate says stop."""
    steps.facts["trained"] = sum(weight.numel() for weight in trainer.model.parameters() if weight.requires_grad)
    steps.facts["optimiser"] = str(getattr(trainer.args.optim, "value", trainer.args.optim))
    trainer.add_callback(steps)
    trainer.train()


@torch.no_grad()
def first_loss(trainer: Trainer) -> float:
    """The loss that the trainer computes of all its rows as one batch, without dropout."""
    inputs = trainer.data_collator(list(trainer.train_dataset))
    training = trainer.model.training
    trainer.model.eval()
    try:
        return float(trainer.compute_loss(trainer.model, trainer._prepare_inputs(inputs)))
    finally:
        trainer.model.train(training)
