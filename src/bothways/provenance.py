"""bothways.json: what an encoder is and how it became so. Read at every load, written at every save."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from bothways.bidirectional.certificate import Certificate
from bothways.bidirectional.windows import Windows
from bothways.errors import ConfigError, DataError
from bothways.pooling import POOLINGS, Pooling
from bothways.text import PoolOver, check_template

FILE = "bothways.json"
FORMAT = 1
Direction = Literal["bidirectional", "causal"]


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """What belongs to an encoder and is stored in its folder."""

    pooling: Pooling = "mean"
    """How token vectors become one: mean, weighted_mean, last or cls (the first)."""
    pool_over: PoolOver = "all"
    """Which tokens are pooled: all of them, or only the text's own (neither BOS nor instruction)."""
    normalize: bool = True
    """Scale every vector to unit length."""
    max_length: int = 512
    """Tokens read of one text, instruction and special tokens included."""
    append_eos: bool = False
    """End every text with the end-of-sequence token; the tokenizer in the folder does it."""
    instruction_template: str = "{instruction} {text}"
    """How instruction and text are joined."""
    text_template: str = "{text}"
    """What stands around every text with its instruction, such as a chat's marks. White space at the end of a text is
    dropped where something follows it."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Prefixes by name, put before a text as they are; encode_query and encode_document use "query" and "document"."""
    direction: Direction = "bidirectional"
    """Whether every token sees every token, or, for comparison, only those before it."""
    windows: Windows = "keep"
    """What was made of sliding windows: kept on both sides, opened ("full"), or halved by the family's own key."""

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise ConfigError(f'pooling="{self.pooling}" is not known. Use one of {", ".join(POOLINGS)}.')
        if self.pool_over not in ("all", "text"):
            raise ConfigError(f'pool_over="{self.pool_over}" is not known. Use "all" or "text".')
        if self.direction not in ("bidirectional", "causal"):
            raise ConfigError(f'direction="{self.direction}" is not known. Use "bidirectional" or "causal".')
        if self.max_length < 1:
            raise ConfigError(f"max_length={self.max_length}: expected at least 1 token.")
        if self.text_template.count("{text}") != 1:
            raise ConfigError(f"text_template={self.text_template!r} must hold {{text}} exactly once.")
        object.__setattr__(self, "instruction_template", check_template(self.instruction_template))


@dataclass(frozen=True)
class Record:
    """What bothways.json says besides the settings: where the weights come from, what was done, what was proved."""

    base: str
    """Name or folder of the decoder that was converted."""
    stages: tuple[Mapping[str, Any], ...] = ()
    """One entry per stage, in order: settings, data fingerprints, seed, versions, scores, seconds."""
    certificate: Certificate | None = None
    head: Mapping[str, Any] = field(default_factory=dict)
    """What the language-model head does beside its matrix: tied, scale, softcap."""
    notes: tuple[str, ...] = ()
    """What a plain loader does differently, said in the model card too."""

    @property
    def described(self) -> str:
        """The base, and the stages that went into it."""
        return " + ".join([self.base, *(str(stage["stage"]) for stage in self.stages)])

    def add(self, stage: str, **facts: Any) -> Record:
        """A record with one more stage; versions and the time are added here."""
        entry = {
            "stage": stage,
            **facts,
            "versions": versions(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        return replace(self, stages=(*self.stages, entry))

    def amended(self, **facts: Any) -> Record:
        """A record whose last stage says more."""
        *before, last = self.stages
        return replace(self, stages=(*before, {**last, **facts}))


def versions() -> dict[str, str]:
    """Versions of what decides about the numbers."""
    found = {"python": platform.python_version()}
    for package in ("bothways", "torch", "transformers", "tokenizers", "peft", "accelerate"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def write(folder: Path, settings: EncoderSettings, record: Record) -> None:
    """Write bothways.json into `folder`. The file is the old one or the new one, never half of it."""
    content = {
        "format": FORMAT,
        "base": record.base,
        "settings": asdict(settings),
        "head": dict(record.head),
        "stages": [dict(stage) for stage in record.stages],
        "notes": list(record.notes),
        "certificate": record.certificate.to_dict() if record.certificate else None,
    }
    unfinished = folder / f"{FILE}.part"
    unfinished.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(unfinished, folder / FILE)


def read(folder: Path) -> tuple[EncoderSettings, Record]:
    """What bothways.json in `folder` says. Raises DataError if it is damaged or of a later format."""
    path = folder / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} line {error.lineno}: {error.msg}. Restore the file, or convert again.") from error
    if content.get("format") != FORMAT:
        raise DataError(f"{path}: format {content.get('format')!r}, but this version reads {FORMAT}. Update bothways.")
    known = {item.name for item in fields(EncoderSettings)}
    unknown = sorted(set(content["settings"]) - known)
    if unknown:
        raise DataError(f'{path}: unknown setting "{unknown[0]}". Update bothways.')
    certificate = content.get("certificate")
    record = Record(
        base=content["base"],
        stages=tuple(content["stages"]),
        certificate=Certificate.from_dict(certificate) if certificate else None,
        head=content.get("head", {}),
        notes=tuple(content.get("notes", ())),
    )
    return EncoderSettings(**content["settings"]), record


def fingerprint_files(paths: list[Path]) -> str:
    """SHA-256 over the names and contents of some files."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode())
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
