"""`bothways show`: what an encoder is, how it became so, how good it was found, and what was proved of it."""

from __future__ import annotations

import json as json_module
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tyro.conf import Positional

from bothways import provenance
from bothways.bidirectional.certificate import Certificate
from bothways.cli.tables import console
from bothways.errors import DataError
from bothways.evaluation.tables import Cell, Row, table
from bothways.provenance import EncoderSettings, Record

STAGE_FOLDER = re.compile(r"(\d+)-\w+")


def show(folder: Positional[Path], certificate: bool = False, json: bool = False) -> None:
    """Show stages, settings, scores and certificate of an encoder.

    Args:
        folder: Folder of an encoder, or of a run, whose last finished stage is shown.
        certificate: Also who sees whom in every mixing sub-module.
        json: Print bothways.json instead.
    """
    folder = _encoder_in(folder)
    settings, record = provenance.read(folder)
    if json:
        print((folder / provenance.FILE).read_text(encoding="utf-8"), end="")
        return
    out = console()
    _show_encoder(out, folder, settings, record)
    out.print(table("Stages", [_stage_row(number, stage) for number, stage in enumerate(record.stages)]))
    out.print(_settings_table(record.stages))
    scores = _score_rows(record.stages)
    if scores:
        out.print(table("Scores", scores))
    if record.certificate is not None:
        out.print(f"[bold]Certificate[/]: {escape(record.certificate.summary())}", soft_wrap=True)
        if certificate:
            out.print(table("Who sees whom", record.certificate.rows()))
            _draw(out, record.certificate)


def _draw(out: Console, certificate: Certificate) -> None:
    """A matrix for each kind of sub-module: row i, column j is filled where token i sees token j."""
    for kind, names in certificate.kinds().items():
        many = f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]
        nature = "attention" if kind.attends else "recurrence or convolution"
        edge = f", sees {kind.window} tokens either way" if kind.window is not None else ""
        out.print(f"\n[bold]{escape(many)}[/]: {kind.kind}, {nature}, {kind.treatment or 'config flag'}{edge}")
        reach, tokens = kind.unpadded, range(certificate.tokens)
        for row in tokens:
            seen = (row - reach.left <= column <= row + reach.right for column in tokens)
            out.print(" ".join("■" if cell else "·" for cell in seen))
    for note in certificate.notes:
        out.print(escape(f"note: {note}"), soft_wrap=True)


def _encoder_in(folder: Path) -> Path:
    """The folder itself, or the last finished stage of a run. Raises DataError if it is neither."""
    if (folder / provenance.FILE).exists():
        return folder
    finished = [
        (int(match[1]), path.parent)
        for path in folder.glob(f"*/{provenance.FILE}")
        if (match := STAGE_FOLDER.fullmatch(path.parent.name))
    ]
    if not finished:
        raise DataError(
            f"{folder} is neither an encoder ({provenance.FILE} is missing) nor a run with finished stages. "
            "Make an encoder with `bothways convert`."
        )
    return max(finished)[1]


def _show_encoder(out: Console, folder: Path, settings: EncoderSettings, record: Record) -> None:
    pooled = "all tokens" if settings.pool_over == "all" else "the text's own tokens"
    length = "unit length" if settings.normalize else "not normalised"
    out.print(f"[bold]{escape(str(folder))}[/]: a {settings.direction} encoder made from {escape(record.base)}")
    out.print(f"{settings.pooling} over {pooled}, {length}, at most {settings.max_length} tokens")
    for name, prompt in settings.prompts.items():
        out.print(escape(f"prompt {name}: {prompt!r}"))
    for note in record.notes:
        out.print(escape(f"note: {note}"), soft_wrap=True)


def _stage_row(number: int, stage: Mapping[str, Any]) -> Row:
    held_out = list(stage.get("held_out", {}).values())
    losses = [scores["loss"] for scores in held_out if "loss" in scores]
    data = stage.get("data", {})
    memory = stage.get("peak_memory_bytes")
    return {
        "": number,
        "stage": stage["stage"],
        "items": data.get("items"),
        "training loss": stage.get("loss"),
        "held out before": losses[0] if losses else None,
        "held out after": losses[-1] if losses else None,
        "seconds": float(stage["seconds"]) if "seconds" in stage else None,
        "peak MiB": None if memory is None else round(memory / 2**20),
        "finished": stage["finished"],
    }


def _settings_table(stages: Sequence[Mapping[str, Any]]) -> Table:
    """One row per setting, one column per stage."""
    shown = Table(title="Settings", title_justify="left")
    shown.add_column("")
    for number, stage in enumerate(stages):
        shown.add_column(f"{number} {stage['stage']}")
    for name in dict.fromkeys(name for stage in stages for name in stage.get("settings", {})):
        cells = (_cell(stage.get("settings", {}), name) for stage in stages)
        shown.add_row(name, *cells)
    return shown


def _cell(settings: Mapping[str, Any], name: str) -> str:
    if name not in settings:
        return ""
    value = settings[name]
    return escape(value if isinstance(value, str) else json_module.dumps(value, ensure_ascii=False))


def _score_rows(stages: Sequence[Mapping[str, Any]]) -> list[dict[str, Cell]]:
    return [
        {"stage": f"{number} {stage['stage']}", "task": task, **measures}
        for number, stage in enumerate(stages)
        for task, measures in stage.get("scores", {}).items()
    ]
