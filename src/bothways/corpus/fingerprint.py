"""Fingerprints: of what an encoder's vectors depend on, and of a folder of vectors."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from bothways.corpus.layout import Manifest, path_of
from bothways.errors import DataError

READ = ("*.safetensors", "*.bin", "*.json", "*.txt", "*.model", "*.py", "*.onnx", "*.data", "*.xml")
"""Weights, config, tokenizer and the model's own code, as they lie beside each other."""
SAID_ELSEWHERE = (
    "bothways.json",
    "export.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)
"""Of an own folder: settings, record, that of an export, and what stock loaders read, which says the same."""
TAIL = 8
"""Bytes behind the footer of a Parquet file: how long it is, and four letters."""


def encoder_fingerprint(folder: str | Path, revision: str | None = None) -> str:
    """SHA-256 of what decides about the vectors of an encoder in a folder, or of a name that has one.

    That is weights, config, tokenizer and settings; the record of how the encoder was made, its model card and its
    unmerged adapter are not read. Raises DataError if the folder is no encoder's.
    """
    # Not above: they bring torch along, which the fingerprint of a corpus does without.
    from bothways import loading, provenance

    folder = loading.resolve(folder, revision)
    own, stock = folder / provenance.FILE, folder / "modules.json"
    if own.is_file():
        provenance.read(folder)
        # As written: a setting that a later version adds does not change the number of an older folder.
        said = json.dumps(json.loads(own.read_text(encoding="utf-8"))["settings"], sort_keys=True)
        files = [path for path in _beside(folder) if path.name not in SAID_ELSEWHERE]
    elif stock.is_file():
        said = ""
        modules = [folder / module["path"] for module in json.loads(stock.read_text(encoding="utf-8"))]
        files = sorted({path for place in [folder, *modules] for path in _beside(place)})
    else:
        raise DataError(f"{folder}: neither {own.name} nor {stock.name} is there, so this is no folder of an encoder.")
    return hashlib.sha256(f"{provenance.fingerprint_files(files)} {said}".encode()).hexdigest()


def corpus_fingerprint(folder: str | Path, manifest: Manifest) -> str:
    """SHA-256 of a manifest's facts, and of the name, size and footer of each of its files.

    A footer has the extremes and sizes of every column, so that vectors that were made again are noticed without
    reading them; bytes that rot inside a file are not. Raises DataError for a file that is missing.
    """
    digest = hashlib.sha256(json.dumps([manifest.fingerprint, manifest.dim, manifest.precision]).encode())
    for part in manifest.parts:
        path = path_of(folder, part)
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(size - TAIL, 0))
            length = int.from_bytes(stream.read(TAIL)[:4], "little")
            stream.seek(max(size - TAIL - length, 0))
            digest.update(json.dumps([part.file, part.rows, size]).encode() + stream.read())
    return digest.hexdigest()


def _beside(folder: Path) -> list[Path]:
    return [path for pattern in READ for path in folder.glob(pattern) if path.is_file()]
