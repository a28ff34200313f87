"""One training stage between two folders: read the files, train, save. What the verbs and the recipes share."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bothways import data, loading
from bothways.encoder import Encoder
from bothways.errors import ConfigError
from bothways.head import Head
from bothways.recipe.reader import Files, Step
from bothways.stages.mntp import mntp
from bothways.stages.simcse import simcse
from bothways.stages.supervised import supervised
from bothways.training.processes import place, wait

TRAIN: dict[str, Callable[..., Encoder]] = {"mntp": mntp, "simcse": simcse, "supervised": supervised}
READ: dict[str, Callable[..., data.Rows[Any]]] = {
    "mntp": data.read_texts,
    "simcse": data.read_texts,
    "supervised": data.read_examples,
}


def checkpoints_of(out: Path) -> Path:
    """Where a stage that will become `out` keeps its checkpoints while it runs."""
    return out.with_name(f"{out.name}.checkpoints")


def read_files(stage: str, files: Files) -> tuple[list[Any], list[Any] | None]:
    """The rows to train on and those to measure the loss on (None: the stage keeps some back). Raises DataError."""
    rows, held_out = (
        [row for path in paths for row in READ[stage](path, files.on_bad_row)] for paths in (files.data, files.held_out)
    )
    return rows, held_out or None


def train_into(encoder: Encoder, step: Step, rows: Sequence[Any], held_out: Sequence[Any] | None, out: Path) -> None:
    """Train `encoder` in place, from its last checkpoint if there is one; write `out`, then drop the checkpoints.

    Of the processes of a launch the first one writes; the others come back when it has.
    """
    where = place()
    checkpoints = checkpoints_of(out)
    TRAIN[step.stage](
        encoder,
        rows,
        step.settings,
        held_out=held_out,
        checkpoint_dir=checkpoints,
        resume=checkpoints.exists(),
    )
    if where.main:
        encoder.save_pretrained(out)
        shutil.rmtree(checkpoints, ignore_errors=True)
    wait(where)


def head_from(base: str, encoder: Encoder) -> Head:
    """The language-model head of the decoder `base`, for an encoder whose folder was saved without one.

    Raises ConfigError if it is of another shape than the encoder's embedding.
    """
    folder = loading.resolve(base)
    config = loading.load_config(folder, trust_remote_code=False)
    wish = loading.Wish(dtype=encoder.dtype, device=encoder.device)
    _, head = loading.load_decoder(folder, config, wish, with_head=True)
    embedding: Any = encoder.model.get_input_embeddings().weight
    if head is None or head.weight.shape != embedding.shape:
        found = "none" if head is None else tuple(head.weight.shape)
        raise ConfigError(
            f"--base {base}: its head is {found}, but this encoder needs {tuple(embedding.shape)}. "
            f"Name the decoder that the encoder was made from ({encoder.record.base})."
        )
    if head.tied:
        return Head(embedding, scale=head.scale, softcap=head.softcap, tied=True)
    return head
