"""What an encoder's vectors depend on, as one number: vectors of two encoders do not compare."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from bothways import loading, provenance
from bothways.errors import DataError

READ = ("*.safetensors", "*.bin", "*.json", "*.txt", "*.model", "*.py")
"""Weights, config, tokenizer and the model's own code, as they lie beside each other."""
SAID_ELSEWHERE = (provenance.FILE, "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")
"""What stock loaders read; of an own folder bothways.json says the same."""


def encoder_fingerprint(folder: str | Path) -> str:
    """SHA-256 of what decides about the vectors of an encoder in a folder, or of a name that has one.

    That is weights, config, tokenizer and settings; the record of how the encoder was made, its model card and its
    unmerged adapter are not read. Raises DataError if the folder is no encoder's.
    """
    folder = loading.resolve(folder)
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


def _beside(folder: Path) -> list[Path]:
    return [path for pattern in READ for path in folder.glob(pattern) if path.is_file()]
