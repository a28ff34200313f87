"""Several texts in one row: no padding, and none sees another. Where that was measured to be exact; else padded rows.

The texts stand one after the other, positions start anew in each, and attention is computed text by text with the
model's own kernel. For that the model is switched to an attention implementation of our own, which transformers calls
in place of its own. Where the mask would be, attention modules are handed a `Sight`: where texts begin and end, and
transformers' own rule of who sees whom (windows included), which is then applied within each text.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, and_masks, bidirectional_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bothways import hardware
from bothways.bidirectional.attention import text_configs_of
from bothways.bidirectional.movement import body_of, make_batch
from bothways.bidirectional.probe import undisturbed

Rows = Sequence[Sequence[int] | NDArray[np.int64]]
"""Token ids, or one number for each token, of some rows."""
PREFIX = "packed_"
"""What our attention implementations are called: this, and the kernel that computes each text."""
KERNELS = ("eager", "sdpa", "flex_attention")
PROBED_LENGTHS = (7, 4, 4, 2)
"""Texts that are packed to see whether it is exact: two of one length, which are computed together."""
PACKED = "packed rows, measured to be exact"
EXTRAS = ("softcap", "s_aux", "position_bias")
"""What some families ask of attention, and torch's varlen kernel does not do."""
PADDING_SHARE = 1 / 64
"""Padding in one forward pass, as a share of its largest size, above which two passes are faster than one."""


@dataclass(frozen=True)
class Packing:
    """Whether a model computes packed rows exactly, and why it is thought so."""

    packed: bool
    why: str

    def groups(self, lengths: Sequence[int], tokens: int) -> list[list[int]]:
        """Positions of the rows that go through the model together, longest first, within `tokens` (and padding)."""
        return packs(lengths, tokens) if self.packed else buckets(lengths, tokens)


def packs(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Positions grouped so that the tokens of a group stay within `tokens`, longest first; a longer row goes alone."""
    groups: list[list[int]] = []
    filled = 0
    for position in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        filled += lengths[position]
        if not groups or filled > tokens:
            groups.append([])
            filled = lengths[position]
        groups[-1].append(position)
    return groups


def buckets(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Positions grouped by length, longest first, so that rows x longest row stays within `tokens`.

    A group also ends where one more row would raise its padding above a sixty-fourth of that: another forward pass is
    then cheaper than the padding. A single row that is too long for the budget is a group of its own.
    """
    groups: list[list[int]] = []
    longest = padding = 0
    for position in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        padding += longest - lengths[position]
        full = not groups or (len(groups[-1]) + 1) * longest > tokens
        if full or padding > tokens * PADDING_SHARE:
            groups.append([])
            longest, padding = lengths[position], 0
        groups[-1].append(position)
    return groups


@contextmanager
def packing(model: PreTrainedModel) -> Iterator[Packing]:
    """Within it `token_states` packs the rows, if the model was just measured to compute them so without an error.

    The attention implementation that the model has computes each text; afterwards the model has it again.
    """
    own = str(model.config._attn_implementation)
    if model in _PACKS:
        yield Packing(True, PACKED)
        return
    try:
        _set_implementation(model, own if _is_flash(own) else PREFIX + own)
        reason = "there is no packed attention for it" if own not in KERNELS and not _is_flash(own) else _flaw(model)
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


@dataclass(frozen=True)
class Texts:
    """Texts that stand one after the other in one row."""

    lengths: tuple[int, ...]
    device: torch.device

    @cached_property
    def runs(self) -> list[tuple[int, int, int]]:
        """(first token, number of texts, length of each) of neighbours of one length, which are computed together."""
        found: list[tuple[int, int, int]] = []
        start = 0
        for length in self.lengths:
            if found and found[-1][2] == length:
                found[-1] = (found[-1][0], found[-1][1] + 1, length)
            else:
                found.append((start, 1, length))
            start += length
        return found

    @property
    def longest(self) -> int:
        """Tokens of the longest."""
        return max(self.lengths)

    @cached_property
    def bounds(self) -> Int[Tensor, " bounds"]:
        """Where each text begins, and where the last one ends; as the kernels want it, int32 and on the device."""
        ends = torch.tensor([0, *self.lengths]).cumsum(0)
        return ends.to(torch.int32).to(self.device)

    @cached_property
    def positions(self) -> Int[Tensor, " tokens"]:
        """Of each token in its text, on the device."""
        return torch.cat([torch.arange(length) for length in self.lengths]).to(self.device)

    @cached_property
    def owners(self) -> Int[Tensor, " tokens"]:
        """Number of the text that each token belongs to, on the device."""
        return torch.repeat_interleave(torch.arange(len(self.lengths)), torch.tensor(self.lengths)).to(self.device)


@dataclass
class Sight:
    """Handed to attention modules in place of a mask: the texts of the row, and who sees whom within each.

    A plain object, and not something the model's code looks up, so that it is there again when a checkpointed layer is
    computed a second time.
    """

    texts: Texts
    rule: Callable[..., Any]
    """transformers' own: (batch, head, query, key) indices -> whether the one sees the other."""
    masks: dict[int, Bool[Tensor, "1 1 queries keys"] | None] = field(default_factory=dict)

    def mask(self, length: int) -> Bool[Tensor, "1 1 queries keys"] | None:
        """For a text of this many tokens, True where the query (row) sees the key; None if every token sees all."""
        if length not in self.masks:
            self.masks[length] = self._mask(length)
        return self.masks[length]

    def _mask(self, length: int) -> Tensor | None:
        if self.rule is bidirectional_mask_function:
            return None
        place = torch.arange(length, device=self.texts.device)
        found: Tensor = self.rule(0, 0, place[:, None], place[None, :]).expand(length, length)
        return None if bool(found.all()) else found.view(1, 1, length, length)

    @cached_property
    def band(self) -> tuple[int, int] | None:
        """How far a token sees to the left and to the right, -1 for all the way; None if that is not one rule for all.

        What the varlen kernel understands. Read off the longest text.
        """
        mask = self.mask(self.texts.longest)
        if mask is None:
            return -1, -1
        place = torch.arange(self.texts.longest, device=mask.device)
        ahead = place[None, :] - place[:, None]
        seen = ahead[mask[0, 0]]
        left, right = -int(seen.min()), int(seen.max())
        if not torch.equal(mask[0, 0], (ahead >= -left) & (ahead <= right)):
            return None
        last = self.texts.longest - 1
        return (-1 if left == last else left), (-1 if right == last else right)

    @cached_property
    def block_mask(self) -> Any:
        """The whole row's, for flex attention."""
        from torch.nn.attention.flex_attention import create_block_mask

        texts, tokens = self.texts, sum(self.texts.lengths)
        place, owner = texts.positions, texts.owners
        rule = and_masks(
            lambda batch, head, query, key: owner[query] == owner[key],
            lambda batch, head, query, key: self.rule(batch, head, place[query], place[key]),
        )
        make = torch.compile(create_block_mask) if texts.device.type == "cuda" else create_block_mask
        return make(rule, None, None, tokens, tokens, device=str(texts.device))


class _Current(threading.local):
    texts: Texts | None = None


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


_CURRENT, _PACKS = _Current(), _Packed()


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
    before, _CURRENT.texts = _CURRENT.texts, texts
    try:
        hidden: Tensor = body(**given).last_hidden_state
    finally:
        _CURRENT.texts = before
    return hidden[0]


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


def _make_mask(kernel: str, /, *args: Any, **kwargs: Any) -> Any:
    """What transformers calls to make a mask: the texts of the row, or outside of `token_states` the kernel's own."""
    if _CURRENT.texts is None:
        return ALL_MASK_ATTENTION_FUNCTIONS[kernel](*args, **kwargs)
    return Sight(_CURRENT.texts, kwargs["mask_function"])


def _attend(
    kernel: str,
    /,
    module: nn.Module,
    query: Float[Tensor, "batch heads tokens dim"],
    key: Float[Tensor, "batch kv_heads tokens dim"],
    value: Float[Tensor, "batch kv_heads tokens value_dim"],
    attention_mask: Any,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    """What transformers calls to attend; returns (1, tokens, heads, value_dim)."""
    if not isinstance(attention_mask, Sight):
        if _CURRENT.texts is not None:
            raise TypeError(f"{type(module).__name__} makes a mask of its own")
        output: tuple[Tensor, Any] = _own(kernel, module)(module, query, key, value, attention_mask, **kwargs)
        return output
    plain = not kwargs.get("dropout") and all(kwargs.get(name) is None for name in EXTRAS)
    if plain and kernel != "eager" and hardware.runs_varlen(query, value) and attention_mask.band is not None:
        return _varlen(query, key, value, attention_mask, kwargs.get("scaling")), None
    if kernel == "flex_attention" or (plain and kernel == "sdpa" and query.is_cuda):
        # One launch for all texts, where text by text would be one for each.
        return _flex(module, query, key, value, attention_mask, **kwargs), None
    return _text_by_text(kernel, module, query, key, value, attention_mask, **kwargs), None


def _own(kernel: str, module: nn.Module) -> Callable[..., Any]:
    """The kernel itself; eager attention is a function in the file of the module."""
    own: Callable[..., Any] = (
        vars(sys.modules[type(module).__module__])["eager_attention_forward"]
        if kernel == "eager"
        else ALL_ATTENTION_FUNCTIONS[kernel]
    )
    return own


def _text_by_text(
    kernel: str, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, sight: Sight, **kwargs: Any
) -> Tensor:
    own, parts = _own(kernel, module), []
    for start, count, length in sight.texts.runs:
        cut = slice(start, start + count * length)
        # (1, heads, count * length, dim) -> (count, heads, length, dim)
        pieces = (
            item[0, :, cut].unflatten(1, (count, length)).transpose(0, 1) if count > 1 else item[:, :, cut]
            for item in (query, key, value)
        )
        mask: Tensor | None = sight.mask(length)
        if mask is not None and kernel == "eager":
            mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min)
        output = own(module, *pieces, mask, **kwargs)[0]
        parts.append(output.reshape(1, count * length, *output.shape[2:]))
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


def _varlen(query: Tensor, key: Tensor, value: Tensor, sight: Sight, scaling: float | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    texts = sight.texts
    assert sight.band is not None
    query, key, value = (item[0].transpose(0, 1) for item in (query, key, value))
    found = varlen_attn(
        query,
        key,
        value,
        texts.bounds,
        texts.bounds,
        texts.longest,
        texts.longest,
        scale=scaling,
        window_size=sight.band,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(found, Tensor)
    return found[None]


def _flex(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, sight: Sight, **kwargs: Any) -> Tensor:
    output: Tensor = _own("flex_attention", module)(module, query, key, value, sight.block_mask, **kwargs)[0]
    return output


for _kernel in KERNELS:
    AttentionInterface.register(PREFIX + _kernel, partial(_attend, _kernel))
    AttentionMaskInterface.register(PREFIX + _kernel, partial(_make_mask, _kernel))
