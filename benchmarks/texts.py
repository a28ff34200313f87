"""The unlabelled text and the rows of the folder `--data`, of which a part is held out from every training."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

UNLABELLED = ("text-gutenberg", "text-peps", "text-rust-rfcs", "text-eips", "text-18f-posts", "wiki-sents")
HELD_OUT = 0.02
"""Share of each file, its tail, that no stage trains on."""


def unlabelled(folder: Path) -> tuple[list[str], list[str]]:
    """Paragraphs to train on and those held out."""
    train: list[str] = []
    held_out: list[str] = []
    for path in sorted(path for name in UNLABELLED for path in (folder / name).glob("*.txt.gz")):
        lines = [line.strip() for line in gzip.decompress(path.read_bytes()).decode("utf-8").splitlines()]
        lines = [line for line in lines if line]
        cut = math.ceil(len(lines) * (1 - HELD_OUT))
        train += lines[:cut]
        held_out += lines[cut:]
    seen = set(train)
    return train, [line for line in held_out if line not in seen]


def json_rows(path: Path) -> list[Any]:
    """The rows of a .jsonl.gz file."""
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode("utf-8").splitlines()]
