"""One training stage between two folders: read the files, train, save. What the verbs and the recipes share."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bothways import data, loading
from bothways.encoder import Encoder
from bothways.errors import ConfigError, TrainingError
from bothways.head import Head
from bothways.recipe.reader import Files, Reads, Step
from bothways.stages.distil import distil
from bothways.stages.mntp import mntp
from bothways.stages.simcse import simcse
from bothways.stages.supervised import supervised
from bothways.training.checkpoint import is_full
from bothways.training.mask_row import recorded_row
from bothways.training.processes import place, wait

TRAIN: dict[str, Callable[..., Encoder]] = {"mntp": mntp, "simcse": simcse, "supervised": supervised, "distil": distil}

Given = Sequence[Any] | data.Texts
"""Rows, or where to stream them from."""


def checkpoints_of(out: Path) -> Path:
    """Where a stage that will become `out` keeps its checkpoints while it runs."""
    return out.with_name(f"{out.name}.checkpoints")


def read_files(what: Reads, files: Files) -> tuple[Given, Given | None]:
    """The rows to train on and those to measure the loss on (None: the stage keeps some back). Raises DataError."""
    return _read(what, files.data, files.on_bad_row), _read(what, files.held_out, files.on_bad_row) or None


def _read(what: Reads, sources: Sequence[data.Source], on_bad_row: data.OnBadRow) -> Given:
    if what == "stream":
        return data.Texts(sources, on_bad_row) if sources else []
    if what == "texts":
        return data.join(data.read_texts(source, on_bad_row) for source in sources)
    return data.join(data.read_examples(source, on_bad_row) for source in sources)


def fingerprint_of(rows: Given) -> str:
    """SHA-256 of everything about the rows that decides what is learnt from them, weights and policies included."""
    if isinstance(rows, data.Texts):
        return rows.fingerprint()
    origins = rows.origins if isinstance(rows, data.Rows) else []
    found, plain = data.fingerprint(rows), data.Policy()
    if all(origin.weight == 1 and origin.policy == plain for origin in origins):
        return found
    shares = [(o.rows, o.weight, *([] if o.policy == plain else [o.policy])) for o in origins]
    return data.fingerprint([found, repr(shares)])


def amount(rows: Given) -> str:
    """How much there is to train on, as far as one knows before it is read."""
    if isinstance(rows, data.Texts):
        return ", ".join(source.name for source in rows.sources)
    return f"{len(rows):,} rows"


def train_into(encoder: Encoder, step: Step, rows: Given, held_out: Given | None, out: Path) -> None:
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
        _save(encoder, out, checkpoints)
        shutil.rmtree(checkpoints, ignore_errors=True)
    wait(where)


def _save(encoder: Encoder, out: Path, checkpoints: Path) -> None:
    try:
        encoder.save_pretrained(out)
    except Exception as problem:
        if not is_full(problem):
            raise
        kept = checkpoints if checkpoints.exists() else "no checkpoint"
        raise TrainingError(
            f"{out}: no space left to write the trained encoder; nothing of it was kept there. {kept} is still there: "
            "make room, and go on with --resume."
        ) from problem


def head_from(base: str, encoder: Encoder) -> Head:
    """The language-model head of the decoder `base`, for an encoder whose folder was saved without one.

    Raises ConfigError if it is of another shape than the encoder's embedding.
    """
    folder = loading.resolve(base)
    config = loading.load_config(folder, trust_remote_code=False)
    wish = loading.Wish(dtype=encoder.dtype, device=encoder.device)
    _, head = loading.load_decoder(folder, config, wish, with_head=True)
    embedding: Any = encoder.model.get_input_embeddings().weight
    # A mask token of its own may have made the embedding a row longer than the base's, which is its last one then.
    rows = {embedding.shape[0], embedding.shape[0] if (own := recorded_row(encoder.record)) is None else own}
    if head is None or head.weight.shape[0] not in rows or head.weight.shape[1:] != embedding.shape[1:]:
        found = "none" if head is None else tuple(head.weight.shape)
        raise ConfigError(
            f"--base {base}: its head is {found}, but this encoder needs {tuple(embedding.shape)}. "
            f"Name the decoder that the encoder was made from ({encoder.record.base})."
        )
    if head.tied:
        return Head(embedding, scale=head.scale, softcap=head.softcap, tied=True)
    return head
