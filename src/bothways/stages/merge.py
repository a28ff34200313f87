"""Several encoders -> one: what each learned from a common origin, in a single set of weights."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bothways.encoder import Encoder
from bothways.errors import ConfigError, DataError
from bothways.opening import measured
from bothways.provenance import Record
from bothways.stages.merge_settings import Merge
from bothways.training import blending, checkpoint, token_cache
from bothways.training.mask_row import mean_row, recorded_row

METHODS = {"linear": blending.linear, "slerp": blending.slerp}
DECIDING = ("direction", "windows", "pooling", "pool_over", "normalize", "append_eos", "instruction_template")
"""What encoders agree in, or their weights mean different things; of the rest the first one's is kept."""
BESIDE = frozenset(
    {
        "_name_or_path",
        "architectures",
        "dtype",
        "transformers_version",
        "use_cache",
        "vocab_size",
        "tie_word_embeddings",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    }
)
"""Keys of a config that change no hidden state, or that are compared as shapes or as the head."""
WAY_OUT = "Merge encoders that were converted from one decoder with the same settings."
SAME_ROW = "Merge encoders from after that MNTP stage; one from before it can be the base."
NO_HEAD = "Merge(head=False), or --no-head, leaves the heads out."
LONGEST = 60
"""Letters of a value in an error."""


def merge(
    encoders: Sequence[Encoder] | Mapping[str, Encoder], settings: Merge | None = None, *, base: Encoder | None = None
) -> Encoder:
    """Merge the weights of encoders into the first one, in place; returns it, measured again, with its record.

    Names, where they are given, stand in errors and in the record. With a `base`, which is what all of them were
    trained from, it is the differences to it that are merged (task vectors), and the base is added again:
    `linear` gives base + sum of weight * (encoder - base), the weighted mean where the weights sum to 1; `slerp` goes
    along the arc between the differences, of several from the result so far to the next one, in their order. What is
    (anti)parallel is merged linearly. All is computed in float32, tensor by tensor, and kept in the first one's dtype.
    A tied head stays tied. Where the encoders have a mask token of their own and the base does not yet, its row in
    the base is where such a row starts. Maximal length and prompts are the first one's.

    Everything is checked before a weight changes: raises ConfigError that names the two which differ, in what, and
    the values: architecture, shapes, tokenizer, direction, pooling, head. Raises ConversionError if what comes out is
    not what the first one's direction says.
    Source: Wortsman et al. 2022 (arXiv 2203.05482); Ilharco et al. 2023 (arXiv 2212.04089).
    """
    settings, begun = Merge() if settings is None else settings, time.monotonic()
    named = encoders if isinstance(encoders, Mapping) else {f"encoders[{i}]": one for i, one in enumerate(encoders)}
    shares = settings.shares(len(named), anchored=base is not None)
    parts = [_Part.of(name, encoder, head=settings.head) for name, encoder in named.items()]
    first, anchor = parts[0], None
    for other in parts[1:]:
        _require_alike(first, other)
    if base is not None:
        anchor = _with_mask_row(_Part.of("the base", base, head=first.head is not None), first)
        _require_same_weights(first, anchor)
    encoder, record = first.encoder, first.encoder.record
    facts = [{**part.facts(record), "weight": share} for part, share in zip(parts, shares, strict=True)]
    about = {"encoders": facts, "base": None if anchor is None else anchor.facts(record)}
    _blend(parts, shares, anchor, settings)
    if not settings.head:
        encoder.head = None
    # What it held was an adapter between two states of the first one.
    encoder.adapter = None
    certificate = measured(encoder.model, encoder.settings)
    if record.certificate is not None:
        certificate = replace(certificate, converted=record.certificate.converted)
    seconds = round(time.monotonic() - begun, 2)
    encoder.record = replace(record, certificate=certificate).add(
        "merge", settings=asdict(settings), **about, seconds=seconds
    )
    return encoder


def refuse_checkpoints(name: str | Path) -> None:
    """Raises DataError if this is what an interrupted run left, or a part of it: no whole encoder is in there."""
    path = Path(name)
    one = path.name.startswith("step-") and path.suffix in (".pt", ".shards")
    if one or (path.is_dir() and checkpoint.found(path)):
        out = (path.parent if one else path).name.removesuffix(".checkpoints")
        raise DataError(
            f"{name} is of the checkpoints of a run: what is trained, as it is trained (adapters, optimiser), not an "
            f"encoder. Finish the run with --resume and merge {out}; --ema-decay averages the weights within a run."
        )


@dataclass(frozen=True)
class _Part:
    """One encoder that goes in, with the tensors that are merged, each once."""

    name: str
    encoder: Encoder
    tensors: Mapping[str, Tensor]
    head: str | None
    """What its head is beside tensors, in words; None: it has none, or heads are left out."""

    @classmethod
    def of(cls, name: str, encoder: Encoder, *, head: bool) -> _Part:
        # Parameters first, because a tied one is among them only once.
        tensors: dict[str, Tensor] = dict(encoder.named_parameters())
        every = dict(encoder.named_parameters(remove_duplicate=False))
        tensors |= {key: value for key, value in encoder.state_dict().items() if key not in every}
        kept = {key: value for key, value in tensors.items() if head or not key.startswith("head.")}
        own = encoder.head if head else None
        said = (
            None if own is None else f"{'tied' if own.tied else 'untied'}, scale {own.scale:g}, softcap {own.softcap}"
        )
        return cls(name, encoder, kept, said)

    def facts(self, first: Record) -> dict[str, Any]:
        """What the record keeps of it; of its stages those that are not the first one's too."""
        stages = [dict(stage) for stage in self.encoder.record.stages if stage not in first.stages]
        made = self.encoder.record.described
        return {"name": self.name, "made": made, "fingerprint": checkpoint.fingerprint(self.encoder), "stages": stages}


@torch.no_grad()
def _blend(parts: Sequence[_Part], shares: Sequence[float], anchor: _Part | None, settings: Merge) -> None:
    method = METHODS[settings.method]
    for key, target in parts[0].tensors.items():
        if target.is_floating_point():
            given = [part.tensors[key].to(target.device) for part in parts]
            start = None if anchor is None else anchor.tensors[key].to(target.device)
            target.copy_(method(given, shares, start))


def _with_mask_row(anchor: _Part, first: _Part) -> _Part:
    """The base with the row that stages after it trained as their mask token, as such a row starts."""
    row = recorded_row(first.encoder.record)
    if row is None or recorded_row(anchor.encoder.record) is not None:
        return anchor
    embedding: Any = anchor.encoder.model.get_input_embeddings()
    key = next(key for key, tensor in anchor.tensors.items() if tensor is embedding.weight)
    rows = embedding.weight.detach()
    grown = torch.cat([rows[:row], mean_row(anchor.encoder)[None], rows[row + 1 :]])
    return replace(anchor, tensors={**anchor.tensors, key: grown})


def _require_alike(first: _Part, other: _Part) -> None:
    """Nothing, if both compute vectors in the same way but for their weights; else ConfigError."""
    for name in DECIDING:
        _require_same(
            name, (first, getattr(first.encoder.settings, name)), (other, getattr(other.encoder.settings, name))
        )
    mine, its = (dict(_flat(part.encoder.model.config.to_dict())) for part in (first, other))
    for key in dict.fromkeys([*mine, *its]):
        if key.rpartition(".")[2] not in BESIDE:
            _require_same(f'"{key}" of the config', (first, mine.get(key)), (other, its.get(key)))
    rows = (recorded_row(part.encoder.record) for part in (first, other))
    _require_same('the row of mask_token="new"', *zip((first, other), rows, strict=True), way_out=SAME_ROW)
    _require_same("the language-model head", (first, first.head), (other, other.head), way_out=NO_HEAD)
    _require_same_weights(first, other)


def _require_same_weights(first: _Part, other: _Part) -> None:
    """Nothing, if both have the same tokens, and tensors of the same names and shapes; else ConfigError."""
    both = (first, other)
    _require_same("architecture", *((part, type(part.encoder.model).__name__) for part in both))
    _require_same("tokenizer", *((part, _tokenizer_of(part.encoder)) for part in both))
    for key in dict.fromkeys([*first.tensors, *other.tensors]):
        shapes = [(part, tuple(part.tensors[key].shape) if key in part.tensors else None) for part in both]
        _require_same(f"the shape of {key}", *shapes, way_out=NO_HEAD if key.startswith("head.") else WAY_OUT)
        mine, its = first.tensors[key], other.tensors[key]
        if not mine.is_floating_point():
            _require_same(f"the whole numbers of {key}", (first, mine.tolist()), (other, its.tolist()))


def _require_same(what: str, *found: tuple[_Part, Any], way_out: str = WAY_OUT) -> None:
    (first, mine), (other, its) = found
    if mine != its:
        names, values = f"{first.name} and {other.name}", f"{_shown(mine)} and {_shown(its)}"
        raise ConfigError(f"merge: {names} differ in {what}: {values}. {way_out}")


def _shown(value: Any) -> str:
    shown = "none" if value is None else json.dumps(value, default=str, ensure_ascii=False)
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 3]}..."


def _tokenizer_of(encoder: Encoder) -> str:
    """What tells tokenizers apart, as errors show it; the length at which texts are cut is no part of it."""
    mark = hashlib.sha256(token_cache.identity(encoder.tokenizer, 0).encode()).hexdigest()[:12]
    return f"{len(encoder.tokenizer)} tokens, SHA-256 {mark}"


def _flat(config: Mapping[Any, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Keys with those around them in front, and their values."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
