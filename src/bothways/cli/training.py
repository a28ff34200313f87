"""`bothways mntp | simcse | supervised ENC --data FILE ... --out DIR`: a folder in, a folder out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import OmitArgPrefixes, Positional

from bothways.cli.options import Opening, Sources, flat, misused, open_encoder, quiet, say
from bothways.data import TEXT, OnBadRow, as_source
from bothways.errors import ConfigError
from bothways.training.settings import MNTP, Distil, SimCSE, Supervised, Training


@dataclass(frozen=True, kw_only=True)
class Input:
    """What is read and written."""

    data: Sources = ()
    """What to train on: files (.txt, .jsonl, .csv, .tsv, each .gz too, .parquet), folders, patterns, hub:OWNER/NAME.

    Options stand behind a question mark: "wiki.txt?weight=2", "hub:OWNER/NAME?config=raw&split=train&column=body".
    Of examples also: in_batch, across, symmetric (true, false), temperature, query_instruction, document_instruction,
    score_max, format (rows, e5, beir), as in "sts.csv?score_max=5&symmetric=true".
    """
    held_out: Sources = ()
    """What to measure the loss on, written likewise; none: some rows of the data are kept back."""
    out: Path
    """Folder of the trained encoder; must not exist yet."""
    resume: bool = False
    """Go on from the last checkpoint of an interrupted run with the same --out."""
    on_bad_row: OnBadRow = "raise"
    """raise: stop at a row that cannot be used; skip: count it, list it, go on."""


@dataclass(frozen=True, kw_only=True)
class TextInput(Input):
    """What is read and written."""

    column: str = TEXT
    """Column (or JSON field) of the text, in sources that name none."""


@dataclass(frozen=True, kw_only=True)
class TextInputWithHead(TextInput):
    """What is read and written."""

    base: str | None = None
    """Decoder to take the language-model head from, where the encoder's folder was saved without it."""


def mntp(
    encoder: Positional[str],
    files: OmitArgPrefixes[TextInputWithHead],
    settings: OmitArgPrefixes[MNTP],
    opening: OmitArgPrefixes[Opening],
) -> None:
    """Train on masked next token prediction.

    Args:
        encoder: Folder of the encoder to train.
    """
    _train("mntp", encoder, files, settings, opening, base=files.base)


def simcse(
    encoder: Positional[str],
    files: OmitArgPrefixes[TextInput],
    settings: OmitArgPrefixes[SimCSE],
    opening: OmitArgPrefixes[Opening],
) -> None:
    """Train on unlabelled texts.

    Args:
        encoder: Folder of the encoder to train.
    """
    _train("simcse", encoder, files, settings, opening)


def supervised(
    encoder: Positional[str],
    files: OmitArgPrefixes[Input],
    settings: OmitArgPrefixes[Supervised],
    opening: OmitArgPrefixes[Opening],
) -> None:
    """Train on queries and the documents that answer them.

    Args:
        encoder: Folder of the encoder to train.
    """
    _train("supervised", encoder, files, settings, opening)


def distil(
    encoder: Positional[str],
    files: OmitArgPrefixes[TextInput],
    settings: OmitArgPrefixes[Distil],
    opening: OmitArgPrefixes[Opening],
) -> None:
    """Train to give the vectors of a teacher.

    Args:
        encoder: Folder of the encoder to train.
    """
    if not settings.teacher:
        misused("distil: --teacher is missing. Name a folder of sentence-transformers, or a .parquet file of vectors.")
    _train("distil", encoder, files, settings, opening)


def _train(
    stage: str, folder: str, files: Input, settings: Training, opening: Opening, base: str | None = None
) -> None:
    if not files.data:
        misused(f"{stage}: --data is missing. Name one or more files to train on.")
    # Here and not above, so that --help and wrong usage answer at once: torch takes seconds to import.
    from bothways.folders import refuse_taken
    from bothways.recipe.reader import Files, Step, reads
    from bothways.recipe.stage import checkpoints_of, head_from, read_files, train_into
    from bothways.training.processes import place

    # First of all: where several processes were launched, this one learns which device is its own.
    main = place().main
    refuse_taken(files.out)
    checkpoints = checkpoints_of(files.out)
    if checkpoints.exists() and not files.resume:
        raise ConfigError(
            f"{checkpoints} holds an interrupted run. Go on with --resume, or delete it, or name another --out."
        )
    if files.resume and main and not checkpoints.exists():
        say(f"{checkpoints}: no checkpoint there, starting from the first step")
    column = files.column if isinstance(files, TextInput) else TEXT
    data, held_out = ([as_source(item, column) for item in flat(given)] for given in (files.data, files.held_out))
    step = Step(stage, settings, Files(data=tuple(data), held_out=tuple(held_out), on_bad_row=files.on_bad_row))
    rows, held_out_rows = read_files(reads(stage, settings), step.files)
    quiet()
    encoder = open_encoder(folder, opening)
    if base is not None:
        encoder.head = head_from(base, encoder)
    train_into(encoder, step, rows, held_out_rows, files.out)
    if main:
        say(f"{stage}: written to {files.out}")
