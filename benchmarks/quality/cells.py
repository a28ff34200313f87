"""What was computed before, kept by everything that decides it, so that a run that was stopped goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.frame import ROOT
from bothways.evaluation.tables import write_json

ASIDE = ("cli", "corpus", "recipe", "architectures", "demo", "evaluation", "__pycache__")
"""Rooms of the library that decide no weight and no vector."""


class Cells:
    """JSON files by key, and folders of models beside them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "models").mkdir(parents=True, exist_ok=True)

    def get(self, kind: str, key: str) -> dict[str, Any] | None:
        """What was put under that key, if anything was."""
        path = self._path(kind, key)
        if not path.exists():
            return None
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["found"]
        return found

    def put(self, kind: str, key: str, why: Any, found: dict[str, Any]) -> None:
        """Keep it, and beside it what the key was made of."""
        write_json(self._path(kind, key), {"found": found, "decided by": why})

    def model(self, key: str) -> Path:
        """The folder for the model with that key."""
        return self.folder / "models" / key

    def _path(self, kind: str, key: str) -> Path:
        return self.folder / f"{kind}-{key}.json"


def key_of(content: Any) -> str:
    """Short, and another for other content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]


def digest(paths: Iterable[Path]) -> str:
    """Of the contents of files."""
    found = hashlib.sha256()
    for path in sorted(paths):
        found.update(path.relative_to(ROOT).as_posix().encode() + b"\n" + path.read_bytes())
    return found.hexdigest()[:20]


def library() -> str:
    """Digest of the code that trains and encodes."""
    home = ROOT / "src" / "bothways"
    return digest(path for path in home.rglob("*.py") if not set(path.relative_to(home).parts) & set(ASIDE))


def measuring() -> str:
    """Digest of the code that scores."""
    return digest((ROOT / "src" / "bothways" / "evaluation").glob("*.py"))
