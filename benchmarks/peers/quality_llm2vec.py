"""llm2vec 0.2.3 in its own environment: its models, losses, tokenisation and pooling, in transformers' Trainer.

Its training scripts are not in its package. What they do besides is done here in the same way, but for the adapters:
all sides train all weights. "Reference" below is that package and those scripts.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from itertools import chain
from pathlib import Path
from typing import Any

import torch

# peft looks for torch.distributed.tensor without importing it.
import torch.distributed.tensor
from llm2vec import LLM2Vec
from llm2vec.dataset.dataset import TrainSample
from llm2vec.loss.utils import load_loss
from llm2vec.models import LlamaBiForMNTP
from transformers import AutoTokenizer, DataCollatorForLanguageModeling, Trainer, TrainingArguments, set_seed

from benchmarks.peers.quality_wire import Job, serve

SEPARATOR = "!@#$%^&*()"
"""The reference puts it between an instruction and a text; of a text without it, it finds no token to pool."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def perform(job: Job) -> dict[str, Any]:
    """Load, train if there is a folder for it, encode. See `Job`."""
    facts: dict[str, Any] = {}
    trained = job.start
    if job.out is not None:
        set_seed(job.seed)
        model, facts = _mntp(job) if job.stage == "mntp" else _contrastive(job)
        Path(job.out).mkdir(parents=True, exist_ok=True)
        model.save_pretrained(job.out)
        for name in TOKENIZER_FILES:
            # The base's, as the reference's next stage loads them: with the mask token added, a "_" in a text would
            # be cut out of its word.
            if (Path(job.base) / name).exists():
                shutil.copy(Path(job.base) / name, job.out)
        trained = job.out
    if job.vectors is not None:
        encoder = _opened(trained or job.base, job.max_length)
        job.give(encoder.encode(job.encode, show_progress_bar=False, convert_to_numpy=True))
    return facts


def _opened(folder: str, max_length: int, **changes: Any) -> LLM2Vec:
    return LLM2Vec.from_pretrained(
        folder, pooling_mode="mean", max_length=max_length, torch_dtype=torch.float32, **changes
    )


def _arguments(job: Job, folder: str) -> TrainingArguments:
    settings = job.settings
    return TrainingArguments(
        output_dir=folder,
        max_steps=settings["steps"],
        per_device_train_batch_size=settings["batch_size"],
        learning_rate=settings["learning_rate"],
        warmup_steps=round(settings["warm_up"] * settings["steps"]),
        lr_scheduler_type="linear",
        seed=job.seed,
        bf16=job.precision == "bf16",
        use_cpu=True,
        dataloader_drop_last=True,
        remove_unused_columns=False,
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )


def _run(trainer: Trainer) -> dict[str, Any]:
    begun = time.monotonic()
    done = trainer.train()
    return {"seconds": time.monotonic() - begun, "steps": done.global_step, "loss": done.training_loss}


def _mntp(job: Job) -> tuple[Any, dict[str, Any]]:
    tokenizer = AutoTokenizer.from_pretrained(job.base)
    # "blank", the paper's choice, needs the character; the reference's other kinds are "eos" and a token of its own.
    tokenizer.mask_token = "_" if "_" in tokenizer.get_vocab() else tokenizer.eos_token
    model = LlamaBiForMNTP.from_pretrained(job.start or job.base, torch_dtype=torch.float32, attn_implementation="sdpa")
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        raise RuntimeError(f"the mask token {tokenizer.mask_token!r} would need a row that the embedding does not have")
    size = job.settings["block_size"]
    whole = tokenizer(job.texts, return_special_tokens_mask=True, verbose=False)
    joined = {key: list(chain(*whole[key])) for key in ("input_ids", "attention_mask", "special_tokens_mask")}
    count = len(joined["input_ids"]) // size
    rows = [{key: all_[i * size : (i + 1) * size] for key, all_ in joined.items()} for i in range(count)]
    collator = DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm_probability=job.settings["mask_rate"])
    with tempfile.TemporaryDirectory() as folder:
        arguments = _arguments(job, folder)
        arguments.label_names = ["labels"]
        facts = _run(Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collator))
    return model.get_model_for_peft(), {**facts, "mask_token": tokenizer.mask_token, "rows": count}


class _Collator:
    """Texts by their place in an example, tokenised by the reference."""

    def __init__(self, model: LLM2Vec) -> None:
        self.model = model

    def __call__(self, samples: list[TrainSample]) -> tuple[list[Any], torch.Tensor]:
        columns = zip(*(sample.texts for sample in samples), strict=True)
        prepared = [[self.model.prepare_for_tokenization(text) for text in column] for column in columns]
        return [self.model.tokenize(texts) for texts in prepared], torch.tensor([sample.label for sample in samples])


class _Trainer(Trainer):
    """The reference's loss of the vectors of queries, positives and, where there are any, negatives."""

    def __init__(self, *args: Any, scale: float, **named: Any) -> None:
        super().__init__(*args, **named)
        self.loss_function = load_loss("HardNegativeNLLLoss", scale=scale)

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False) -> Any:
        """Of one batch."""
        features, _ = inputs
        return self.loss_function(*(model(feature) for feature in features))


def _contrastive(job: Job) -> tuple[Any, dict[str, Any]]:
    if job.stage == "simcse":
        # Its data set gives the bare line twice, without the separator.
        samples = [TrainSample(texts=[text, text], label=1.0) for text in job.texts]
        changes = {"attention_dropout": job.settings["dropout"]}
    else:
        samples = [TrainSample(texts=[SEPARATOR + text for text in row], label=1.0) for row in job.examples]
        changes = {}
    model = _opened(job.start or job.base, job.settings["max_length"], **changes)
    with tempfile.TemporaryDirectory() as folder:
        trainer = _Trainer(
            model=model,
            args=_arguments(job, folder),
            train_dataset=samples,
            data_collator=_Collator(model),
            tokenizer=model.tokenizer,
            scale=1 / job.settings["temperature"],
        )
        facts = _run(trainer)
    model.model.config.attention_dropout = 0.0
    return model.model, facts


if __name__ == "__main__":
    serve(perform)
