"""An encoder in memory -> its folder, complete or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bothways import artefact, stock
from bothways.artefact import Adapter
from bothways.bidirectional.attention import says_bidirectional
from bothways.errors import ConversionError
from bothways.folders import new_folder
from bothways.head import Head
from bothways.pooling import pool
from bothways.provenance import EncoderSettings, Record
from bothways.text import Features, TextIds

TAKEN = "Choose another folder, or pass overwrite=True."
SAMPLE_TEXTS = ("How do I open a compressed file?", "The signature of the certificate is invalid.", "A short text")


@runtime_checkable
class Saveable(Protocol):
    """What is asked of an encoder here."""

    model: PreTrainedModel
    head: Head | None
    tokenizer: PreTrainedTokenizerBase
    settings: EncoderSettings
    record: Record
    adapter: Adapter | None

    @property
    def dim(self) -> int: ...

    def tokenise(self, texts: Sequence[str]) -> list[TextIds]: ...

    def collate(self, rows: Sequence[TextIds]) -> Features: ...

    def hidden_states(self, features: Features) -> Tensor: ...


def save(encoder: Saveable, folder: Path, *, head: bool, overwrite: bool) -> None:
    """Write the folder of an encoder, as `Encoder.save_pretrained` says."""
    facts, tensors = _head_of(encoder.head, kept=head)
    if encoder.settings.direction == "bidirectional" and not says_bidirectional(encoder.model.config):
        raise AssertionError("the config of a bidirectional model does not say so")
    with new_folder(folder, overwrite=overwrite, way_out=TAKEN) as partial:
        encoder.model.save_pretrained(partial, state_dict={**encoder.model.state_dict(), **tensors})
        encoder.tokenizer.save_pretrained(partial)
        artefact.write_engine_keys(partial, encoder.settings)
        backend, note = stock.needed_backend(encoder.model, encoder.settings, encoder.record.certificate)
        pooling_note = stock.pooling_note(encoder.settings, encoder.tokenizer, _cosine_of_stock_pooling(encoder))
        record = replace(encoder.record, head=facts, notes=tuple(text for text in (note, pooling_note) if text))
        artefact.write_stock_files(
            partial,
            encoder.settings,
            record,
            dim=encoder.dim,
            attn_implementation=backend,
            two_way=note is not None,
        )
        if encoder.adapter is not None:
            encoder.adapter.write(partial / artefact.ADAPTER)


def require_alike(kept: NDArray[Any], read: NDArray[Any], dtype: torch.dtype) -> None:
    """Nothing, if vectors of an encoder and of what was written of it are equal to rounding; else ConversionError."""
    difference = float(np.abs(kept - read).max())
    if not difference <= (1e-5 if dtype == torch.float32 else 1e-2) * max(1.0, float(np.abs(kept).max())):
        raise ConversionError(
            f"What was written gives other vectors than the encoder does: they differ by {difference:.1e}. "
            "Something was changed that no file holds; save the encoder, open the folder, and go on with that."
        )


def _head_of(head: Head | None, *, kept: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What bothways.json says of the head, and its tensors in the files; a tied one has none of its own."""
    if head is None or not (kept or head.tied):
        return {}, {}
    facts = {"tied": head.tied, "scale": head.scale, "softcap": head.softcap}
    return facts, {} if head.tied else {f"lm_head.{name}": tensor for name, tensor in head.state_dict().items()}


def _cosine_of_stock_pooling(encoder: Saveable) -> float:
    with torch.no_grad():
        features = encoder.collate(encoder.tokenise(SAMPLE_TEXTS))
        hidden = encoder.hidden_states(features)
        own, plain = (
            pool(hidden, keep, encoder.settings.pooling) for keep in (features.pool_mask, features.attention_mask)
        )
        return float(F.cosine_similarity(own, plain).mean())
