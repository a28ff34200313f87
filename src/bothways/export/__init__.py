"""Encoders for other engines: written whole or not at all, and asked for vectors before they take their name."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bothways.errors import ConfigError, DataError, VerificationError, did_you_mean
from bothways.folders import new_path, refuse_taken_file, write_whole

# What loads torch is imported where it is used: the command line asks here for the names of targets.
if TYPE_CHECKING:
    from bothways.export.verdict import Verdict

TARGETS = {
    "onnx": "onnx:write",
    "openvino": "openvino:write",
    "sentence-transformers": "stock:write",
    "vllm": "serving.vllm:write",
    "tei": "serving.tei:write",
    "sglang": "serving.sglang:write",
    "gguf": "gguf:write",
}
"""Name -> the module here and its function `write(encoder, folder, out, *, number_format)`, which makes the file or the
folder `out` and opens it in the engine that it is for."""
RECORD = "export.json"
"""Where it stands what an exported file or folder was made of: in the folder, or beside the file under its name."""


def export(
    folder: str | Path,
    to: str,
    out: str | Path,
    *,
    number_format: str | None = None,
    texts: Sequence[str] | None = None,
    tolerance: float | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> Verdict:
    """Writes the encoder in a folder for another engine, and returns what that engine's vectors were found to be.

    `number_format`: what the target has beside its default, as "q8_0" or "int8". `texts` and `tolerance` are those of
    `verify`. Raises VerificationError if the vectors are not the folder's, after which there is nothing at `out`;
    ConfigError for an unknown target, for what it cannot do, or if `out` is taken.
    """
    from bothways.encoder import Encoder
    from bothways.export.verify import verify

    if to not in TARGETS:
        raise ConfigError(f'export: unknown target "{to}". {did_you_mean(to, TARGETS)}')
    folder, out = Path(folder), Path(out)
    record = record_of(out)
    for path in (out, record):
        refuse_taken_file(path)
    module, name = TARGETS[to].split(":")
    write = getattr(import_module(f"{__name__}.{module}"), name)
    encoder = Encoder.from_pretrained(folder, device=device, trust_remote_code=trust_remote_code)
    if (template := encoder.settings.text_template) != "{text}":
        raise ConfigError(
            f"export: {folder} reads every text as {template!r}, which no engine puts around it. "
            "Serve the folder itself: bothways serve."
        )
    with new_path(out) as partial:
        engine = write(encoder, folder, partial, number_format=number_format)
        del encoder
        try:
            engine.name = engine.name.replace(str(partial), str(out))
            verdict = verify(
                engine,
                folder,
                texts=texts,
                tolerance=tolerance,
                device=device,
                trust_remote_code=trust_remote_code,
            )
        finally:
            engine.close()
        if not verdict.right:
            raise VerificationError(f"{verdict.sentence()} Nothing was written to {out}.")
        facts = {"to": to, "number_format": number_format, "verdict": verdict.as_json()}
        if partial.is_dir() and not is_encoder(partial):
            _write_record(partial / RECORD, facts, os.path.relpath(folder, out))
    if out.is_file():
        _write_record(record, facts, os.path.relpath(folder, out.parent))
    return verdict


def is_encoder(folder: Path) -> bool:
    """Whether a folder has all that `Encoder.from_pretrained` needs, so that it is its own reference."""
    from bothways.provenance import FILE

    return (folder / FILE).exists() and any(folder.glob("*.safetensors"))


def _write_record(path: Path, facts: Mapping[str, Any], made_of: str) -> None:
    # The way from the record to the encoder, so that both can be moved together.
    write_whole(path, json.dumps({"folder": made_of, **facts}, indent=2, ensure_ascii=False) + "\n")


def record_of(out: Path) -> Path:
    """Where the record of an exported file or folder is."""
    return out / RECORD if out.is_dir() else out.with_name(f"{out.name}.{RECORD}")


def made_of(out: str | Path) -> Path | None:
    """The folder that a target is to be compared with: itself if it is an encoder's, or what its record says.

    None if nothing says it. Raises DataError if the folder that the record names is gone.
    """
    out = Path(out)
    if is_encoder(out):
        return out
    # Beside a file of a folder stands that of the folder.
    record = next((path for path in (record_of(out), out.parent / RECORD) if path.exists()), None)
    if record is None:
        return None
    folder = Path(os.path.normpath(record.parent / json.loads(record.read_text(encoding="utf-8"))["folder"]))
    if not folder.is_dir():
        raise DataError(f"{record}: made of {folder}, which is not there. Pass --against FOLDER.")
    return folder
