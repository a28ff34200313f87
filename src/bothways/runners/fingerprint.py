"""fingerprint.json: what a file of another engine holds, and vectors that it gave when it was written.

A file that gives other vectors for the same texts is not the one that was exported and checked, or not with this
tokenizer: it is refused when it is opened.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from bothways.errors import DataError
from bothways.folders import write_whole

FILE = "fingerprint.json"
FORMAT = 1
TEXTS = (
    "How do I open a compressed file?",
    "A short text",
    "The signature of the certificate is invalid, because the file was changed after it had been signed: what is read "
    "now is not what was written then, and nobody can say who changed it, when, or why.",
)
"""Of unequal lengths, so that two of them are padded."""
SLACK = 1e-4
"""Largest difference of two float32 vectors of unit length that the rounding of another machine may explain."""
FAITHFUL = 0.98
"""Lowest cosine where numbers are kept in fewer bits: machines multiply those in different ways."""


@dataclass(frozen=True)
class Exported:
    """What was exported, for which engine, and the vectors of some texts as that engine gave them then."""

    backend: str
    number_format: str
    """float32; int8: of the weights of matrix products; bfloat16: in which OpenVINO is to compute, if the CPU can."""
    computed_in: str
    """In which the vectors were computed."""
    texts: tuple[str, ...]
    vectors: tuple[tuple[float, ...], ...]
    versions: Mapping[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Into the folder's fingerprint.json."""
        write_whole(folder / FILE, json.dumps({"format": FORMAT, **asdict(self)}, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Exported:
        """What `write` wrote. Raises DataError if it is missing, damaged or of a later format."""
        path = folder / FILE
        again = "Export again: bothways export."
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise DataError(f"{path} is missing: nothing says which vectors the file must give. {again}") from error
        except json.JSONDecodeError as error:
            raise DataError(f"{path} line {error.lineno}: {error.msg}. {again}") from error
        if content.pop("format", None) != FORMAT:
            raise DataError(f"{path}: another format than {FORMAT}, which this version reads. Update bothways.")
        try:
            vectors = tuple(tuple(vector) for vector in content.pop("vectors"))
            return cls(vectors=vectors, texts=tuple(content.pop("texts")), **content)
        except (KeyError, TypeError) as error:
            raise DataError(f"{path}: an entry is missing or unknown ({error}). {again}") from error

    def require(self, found: Float[np.ndarray, "texts dim"], computed_in: str, folder: Path) -> None:
        """Nothing, if these vectors, computed in that number format, are those that were stored; else DataError."""
        stored = np.array(self.vectors, dtype=np.float32)
        if stored.shape != found.shape:
            flaw = f"vectors of {found.shape[-1]} numbers where {stored.shape[-1]} were stored"
        elif {computed_in, self.computed_in} == {"float32"}:
            worst = worst_difference(found, stored)
            flaw = "" if worst <= SLACK else f"differences of up to {worst:.1e} to the stored vectors"
        else:
            worst = float(cosines(found, stored).min())
            flaw = "" if worst >= FAITHFUL else f"vectors with a cosine of {worst:.4f} to the stored ones"
        if flaw:
            raise DataError(
                f"{folder} is not what was exported: its file gives {flaw}. Restore the files of the folder, or export "
                "again."
            )


def worst_difference(found: Float[np.ndarray, "rows dim"], wanted: Float[np.ndarray, "rows dim"]) -> float:
    """The largest difference of a number, as a share of the length of its vector."""
    return float((np.abs(found - wanted).max(axis=1) / np.linalg.norm(wanted, axis=1).clip(1e-9)).max())


def cosines(one: Float[np.ndarray, "texts dim"], other: Float[np.ndarray, "texts dim"]) -> Float[np.ndarray, " texts"]:
    """Of each vector to the other of its text."""
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    found: np.ndarray = (one * other).sum(axis=1) / lengths.clip(1e-12)
    return found
