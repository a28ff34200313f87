"""Rows of ids -> states of their tokens: packed where that was just measured to be exact, else padded."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from bothways.bidirectional.attention import text_configs_of
from bothways.bidirectional.movement import body_of, make_batch
from bothways.bidirectional.probe import undisturbed
from bothways.packing.attention import CURRENT, KERNELS, PREFIX
from bothways.packing.groups import buckets, packs
from bothways.packing.sight import Texts

Rows = Sequence[Sequence[int] | NDArray[np.int64]]
"""Token ids, or one number for each token, of some rows."""
PROBED_LENGTHS = (7, 4, 4, 2)
"""Texts that are packed to see whether it is exact: two of one length, which are computed together."""
PACKED = "packed rows, measured to be exact"


@dataclass(frozen=True)
class Packing:
    """Whether a model computes packed rows exactly, and why it is thought so."""

    packed: bool
    why: str

    def groups(self, lengths: Sequence[int], tokens: int) -> list[list[int]]:
        """Positions of the rows that go through the model together, longest first, within `tokens` (and padding)."""
        return packs(lengths, tokens) if self.packed else buckets(lengths, tokens)


@contextmanager
def packing(model: PreTrainedModel, known: Packing | None = None) -> Iterator[Packing]:
    """Within it `token_states` packs the rows, if the model was measured to compute them so without an error.

    It is measured now, unless it is `known`: of this model, with this attention implementation, number format and
    device. The attention implementation that the model has computes each text; afterwards the model has it again.
    """
    own = str(model.config._attn_implementation)
    if model in _PACKS:
        yield Packing(True, PACKED)
        return
    if known is not None and not known.packed:
        yield known
        return
    try:
        _set_implementation(model, own if _is_flash(own) else PREFIX + own)
        reason = _reason(model, own) if known is None else ""
        if reason:
            _set_implementation(model, own)
            yield Packing(False, f"padded rows of like length: {reason}")
        else:
            _PACKS.add(model)
            yield Packing(True, PACKED)
    finally:
        _PACKS.discard(model)
        _set_implementation(model, own)


@contextmanager
def packing_of_copy(model: PreTrainedModel, twin: nn.Module) -> Iterator[None]:
    """Within it `token_states` packs the rows for `twin` too, a copy of `model`, if it does so for `model`."""
    if model in _PACKS:
        _PACKS.add(twin)
    try:
        yield
    finally:
        _PACKS.discard(twin)


def token_states(model: PreTrainedModel, rows: Rows, pad_id: int) -> Float[Tensor, "tokens dim"]:
    """The last hidden state of every token of the rows, row after row, on the model's device.

    Packed within `packing`, else as one right-padded batch; it is the same but for the rounding.
    """
    if model in _PACKS:
        return _packed_states(model, rows)
    lengths = [len(row) for row in rows]
    ids = nn.utils.rnn.pad_sequence([torch.as_tensor(row) for row in rows], batch_first=True, padding_value=pad_id)
    mask = torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]
    hidden: Tensor = model(
        input_ids=ids.to(model.device), attention_mask=mask.long().to(model.device)
    ).last_hidden_state
    if all(length == lengths[0] for length in lengths):
        return hidden.flatten(0, 1)
    # Positions from the CPU: a mask of the device's would have to wait for it.
    real = mask.flatten().nonzero()[:, 0].to(hidden.device)
    return hidden.flatten(0, 1).index_select(0, real)


class _Packed(threading.local):
    """Models that are within `packing`, by identity: a model is no key of a set that compares."""

    def __init__(self) -> None:
        self.ids: set[int] = set()

    def add(self, model: nn.Module) -> None:
        self.ids.add(id(model))

    def discard(self, model: nn.Module) -> None:
        self.ids.discard(id(model))

    def __contains__(self, model: nn.Module) -> bool:
        return id(model) in self.ids


_PACKS = _Packed()


def _packed_states(model: PreTrainedModel, rows: Rows) -> Float[Tensor, "tokens dim"]:
    texts = Texts(tuple(len(row) for row in rows), model.device)
    ids = torch.cat([torch.as_tensor(row) for row in rows])[None].to(model.device)
    given: dict[str, Any] = {"input_ids": ids, "position_ids": texts.positions[None]}
    if _is_flash(str(model.config._attn_implementation)):
        # Flash kernels are told where texts end by arguments that transformers' models pass on to them.
        given |= {"cu_seq_lens_q": texts.bounds, "cu_seq_lens_k": texts.bounds}
        given |= {"max_length_q": texts.longest, "max_length_k": texts.longest}
    else:
        # Without a mask causal models look for packed rows by themselves, and wait for the device to do so.
        given["attention_mask"] = torch.ones_like(ids)
    body = body_of(model)
    if "use_cache" in inspect.signature(type(body).forward).parameters:
        given["use_cache"] = False
    before, CURRENT.texts = CURRENT.texts, texts
    try:
        hidden: Tensor = body(**given).last_hidden_state
    finally:
        CURRENT.texts = before
    return hidden[0]


def _reason(model: PreTrainedModel, own: str) -> str:
    """Why this model, already switched, is not to compute packed rows; "" if it may."""
    return "there is no packed attention for it" if own not in KERNELS and not _is_flash(own) else _flaw(model)


def _flaw(model: PreTrainedModel) -> str:
    """What goes wrong when this model, already switched, computes packed rows; "" if nothing does."""
    exact = model.dtype == torch.float32
    slack, leak = (1e-4, 1e-6) if exact else (0.05, 1e-3)
    with undisturbed(model):
        try:
            batch = make_batch(model, padding=0)
            rows = [batch.ids[i, :length].tolist() for i, length in enumerate(PROBED_LENGTHS)]
            other = [rows[0], batch.ids[-1, : PROBED_LENGTHS[1]].tolist(), *rows[2:]]
            together, changed = _packed_states(model, rows), _packed_states(model, other)
            alone = torch.cat([_packed_states(model, [row]) for row in rows])
            plain = torch.cat([token_states(model, [row], 0) for row in rows])
        except Exception as error:  # whatever a model's own code may raise
            return f"packing fails ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
    size = plain.abs().max()
    start, end = PROBED_LENGTHS[0], PROBED_LENGTHS[0] + PROBED_LENGTHS[1]
    others = torch.cat([(together - changed)[:start], (together - changed)[end:]]).abs().max()
    if not others <= leak * size:
        return f"packed texts change one another (by {float(others / size):.0e} of the largest hidden state)"
    worst = max((together - plain).abs().max(), (alone - plain).abs().max())
    if not worst <= slack * size:
        return f"packed texts differ from single ones (by {float(worst / size):.0e} of the largest hidden state)"
    return ""


def _is_flash(implementation: str) -> bool:
    return implementation.startswith("flash")


def _set_implementation(model: PreTrainedModel, name: str) -> None:
    for config in text_configs_of(model):
        config._attn_implementation = name
