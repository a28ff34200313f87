"""What several verbs share: the types of their arguments, and how an encoder is opened."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from tyro.conf import UseAppendAction

Paths = Annotated[tuple[tuple[Path, ...], ...], UseAppendAction]
"""`--tasks a b` and `--tasks a --tasks b` are the same."""
Sources = Annotated[tuple[tuple[str, ...], ...], UseAppendAction]
"""`--data a.txt b.txt` and `--data a.txt --data b.txt` are the same; see `bothways.data.as_source`."""
Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How the encoder is opened."""

    device: str | None = None
    """Where to compute; None: the first accelerator that works."""
    dtype: str | None = None
    """float32, bfloat16, float16, auto (the hardware decides), or None for the folder's own."""
    attn_implementation: str | None = None
    """eager or sdpa; None: what transformers picks."""
    trust_remote_code: bool = False
    """Run code that the model brings along."""
    backend: Literal["onnx", "openvino"] | None = None
    """What computes a folder that was exported for it; None: torch."""


def open_encoder(folder: str | Path, opening: Opening) -> Any:
    """The encoder in a folder; for a backend an `ExportedEncoder`, which has of it all that encodes."""
    from bothways.encoder import Encoder

    encoder = Encoder.from_pretrained(folder, **vars(opening))
    if encoder.dtype_choice is not None:
        say(f"{folder}: computed in {encoder.dtype}, {encoder.dtype_choice.why}".replace("torch.", ""))
    return encoder


def flat(groups: tuple[tuple[Item, ...], ...]) -> tuple[Item, ...]:
    """All items, in the order of the command line."""
    return tuple(item for group in groups for item in group)


def misused(message: str) -> NoReturn:
    """Say what is wrong with the command line and exit with 2."""
    print(f"bothways {message}", file=sys.stderr)
    raise SystemExit(2)


def quiet() -> None:
    """Silence transformers' bars: "Loading weights" says nothing that the next line does not."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def say(message: str) -> None:
    """One line of progress, on stderr: stdout is for data."""
    print(message, file=sys.stderr, flush=True)
