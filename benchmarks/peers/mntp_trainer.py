"""MNTP by transformers' own Trainer, in either environment: one batch of BERT-style masking after another."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from transformers import DataCollatorForLanguageModeling, Trainer

from benchmarks.peers.masked import MaskedJob, masked_batch, texts
from benchmarks.peers.trainer import Steps, arguments, train
from benchmarks.peers.wire import Gate


@torch.no_grad()
def loss_of(model: Any, job: MaskedJob) -> float:
    """Mean cross-entropy of the common masked batch, without dropout."""
    ids, labels = (tensor.to(model.device) for tensor in masked_batch(job))
    model.eval()
    return float(model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss)


def train_masked(model: Any, tokenizer: Any, job: MaskedJob, gate: Gate, **facts: Any) -> None:
    """Train on the job's rows until the gate says stop. The optimiser is the Trainer's default, AdamW."""
    rows = [tokenizer(text, return_special_tokens_mask=True) for text in texts(job)]
    if any(len(row["input_ids"]) != job.tokens for row in rows):
        raise RuntimeError(f"expected rows of {job.tokens} tokens, got {sorted({len(r['input_ids']) for r in rows})}")
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=arguments(job, folder, remove_unused_columns=False, label_names=["labels"]),
            train_dataset=rows,
            data_collator=DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm_probability=job.mask_rate),
        )
        train(trainer, Steps(gate, facts))
