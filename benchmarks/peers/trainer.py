"""transformers' own Trainer, in either environment: one batch of BERT-style masking after another."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from transformers import DataCollatorForLanguageModeling, Trainer, TrainerCallback, TrainingArguments

from benchmarks.peers.wire import MANY_STEPS, Gate, Job, masked_batch, texts


class Steps(TrainerCallback):
    """Holds the Trainer at the gate after every step, so that a step is all it does from one to the next."""

    def __init__(self, gate: Gate, facts: dict[str, Any]) -> None:
        self.gate, self.facts = gate, facts

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """The Trainer is ready for its first step."""
        control.should_training_stop = not self.gate.open(**self.facts)
        return control

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Forward, backward, clipping, optimiser and schedule are done."""
        control.should_training_stop = not self.gate.step()
        return control


@torch.no_grad()
def loss_of(model: Any, job: Job) -> float:
    """Mean cross-entropy of the common masked batch, without dropout."""
    ids, labels = (tensor.to(model.device) for tensor in masked_batch(job))
    model.eval()
    return float(model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss)


def train(model: Any, tokenizer: Any, job: Job, gate: Gate, **facts: Any) -> None:
    """Train on the job's rows until the gate says stop. The optimiser is the Trainer's default, AdamW."""
    rows = [tokenizer(text, return_special_tokens_mask=True) for text in texts(job)]
    if any(len(row["input_ids"]) != job.tokens for row in rows):
        raise RuntimeError(f"expected rows of {job.tokens} tokens, got {sorted({len(r['input_ids']) for r in rows})}")
    facts["trained"] = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=job.batch,
            max_steps=MANY_STEPS,
            learning_rate=job.learning_rate,
            logging_strategy="no",
            save_strategy="no",
            eval_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            label_names=["labels"],
            use_cpu=job.device == "cpu",
            bf16=job.dtype == "bfloat16",
        )
        facts["optimiser"] = str(getattr(arguments.optim, "value", arguments.optim))
        Trainer(
            model=model,
            args=arguments,
            train_dataset=rows,
            data_collator=DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm_probability=job.mask_rate),
            callbacks=[Steps(gate, facts)],
        ).train()
