"""What a converted model must still do: forget padding, survive saving and loading, take an adapter, pass gradients."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bothways.architectures.record import Checks
from bothways.bidirectional.certificate import Certificate
from bothways.bidirectional.gate import GATE, has_gates
from bothways.bidirectional.movement import PADDING, body_of, make_batch
from bothways.packing import packing, token_states

Convert = Callable[[PreTrainedModel], Certificate]

LENGTHS = (17, 11, 7, 3, 14)
"""Tokens of the texts that are batched: odd and even, some of them shorter than two windows."""
ADAPTER_STD = 0.1
"""An adapter starts as nothing, at random; this makes it something that can get lost, the same every time."""


def padding_change(model: PreTrainedModel) -> float:
    """How much the hidden states of texts change when they stand in one right-padded batch, relative to their size."""
    ids = make_batch(model, PADDING).ids[: len(LENGTHS)]
    mask = (torch.arange(ids.shape[1]) < torch.tensor(LENGTHS)[:, None]).long()
    together = hidden_of(model, ids, mask)
    return max(
        _change(hidden_of(model, ids[row : row + 1, :length], mask[row : row + 1, :length])[0], together[row, :length])
        for row, length in enumerate(LENGTHS)
    )


@torch.no_grad()
def packed_change(model: PreTrainedModel) -> tuple[float | None, str]:
    """The same where the texts stand packed in one row, and ""; or None and why they cannot."""
    with packing(model) as how:
        if not how.packed:
            return None, how.why
        ids = make_batch(model, PADDING).ids.tolist()
        rows = [row[:length] for row, length in zip(ids, LENGTHS, strict=False)]
        together = token_states(model, rows, pad_id=0).split([len(row) for row in rows])
        alone = [token_states(model, [row], pad_id=0) for row in rows]
    return max(map(_change, alone, together)), ""


def check(model: PreTrainedModel, certificate: Certificate, convert: Convert) -> Checks:
    """All checks but that of padding, on a converted model, which is wrapped with an adapter afterwards."""
    values: dict[str, float] = {}
    errors: dict[str, str] = {}
    unreached: tuple[str, ...] = ()
    _move_gates(model)
    with tempfile.TemporaryDirectory() as folder:
        try:
            step = "gradients"
            unreached = _unreached(model, certificate)
            step = "saved"
            again, values[step] = _saved(model, convert, Path(folder))
            step = "adapted"
            values[step] = _adapted(model, again, Path(folder) / "adapter")
        except Exception as error:  # whatever a model's own code, peft or transformers may raise
            errors[step] = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return Checks(certificate.attn_implementation, values.get("saved"), values.get("adapted"), unreached, errors)


@torch.no_grad()
def _move_gates(model: PreTrainedModel) -> None:
    """From where every gate starts to values of their own, so that one that is lost would be missed."""
    gates = (parameter for name, parameter in model.named_parameters() if GATE in name)
    for number, gate in enumerate(gates):
        gate.fill_(0.01 * (number % 5) - 0.02)


def _saved(model: PreTrainedModel, convert: Convert, folder: Path) -> tuple[PreTrainedModel, float]:
    """The same model, loaded and converted again, and how much its hidden states changed."""
    model.save_pretrained(folder)
    again: PreTrainedModel = type(model).from_pretrained(
        folder, attn_implementation=model.config._attn_implementation, dtype=torch.float32
    )
    again.eval()
    convert(again)
    return again, _difference(model, again)


def _adapted(model: PreTrainedModel, again: PreTrainedModel, folder: Path) -> float:
    """How much the hidden states change when a LoRA adapter is saved and put on the model that was loaded again."""
    gates = [GATE] if has_gates(model) else None
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=_linear_layers(model), modules_to_save=gates))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name or (GATE in name and parameter.requires_grad):
                parameter.copy_(ADAPTER_STD * torch.randn(parameter.shape, generator=generator))
    wrapped.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped.save_pretrained(str(folder))
    loaded = PeftModel.from_pretrained(again, folder)
    loaded.eval()
    return _difference(cast(PreTrainedModel, wrapped.base_model.model), cast(PreTrainedModel, loaded.base_model.model))


def _linear_layers(model: PreTrainedModel) -> list[str]:
    """Names of the linear layers that are called and return a product; a router that inherits from one returns more."""
    body, called = body_of(model), []

    def note(name: str) -> Callable[..., None]:
        return lambda module, args, output: called.append(name) if isinstance(output, Tensor) else None

    # peft refuses the last layer of a Mamba block, whose fused kernel reads the weight without calling the layer.
    fused = {f"{name}.out_proj" for name, module in body.named_modules() if hasattr(module, "conv1d")}
    handles = [
        module.register_forward_hook(note(name))
        for name, module in body.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and name not in fused
    ]
    batch = make_batch(model, PADDING)
    hidden_of(model, batch.ids, batch.mask)
    for handle in handles:
        handle.remove()
    return list(dict.fromkeys(called))


def _unreached(model: PreTrainedModel, certificate: Certificate) -> tuple[str, ...]:
    """Certified sub-modules that have parameters, of which none gets a gradient."""
    model.zero_grad()
    model.train()
    batch = make_batch(model, PADDING)
    with torch.enable_grad():
        hidden = _hidden(model, batch.ids, batch.mask)
        # A plain sum of normalised states has no gradient.
        weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0))
        (hidden * weights * batch.mask[..., None]).sum().backward()
    unreached = tuple(
        mixer.name for mixer in certificate.modules if not _reached(list(model.get_submodule(mixer.name).parameters()))
    )
    model.zero_grad()
    model.eval()
    return unreached


def _reached(parameters: Sequence[Tensor]) -> bool:
    gradients = [parameter.grad for parameter in parameters]
    return not parameters or any(gradient is not None and bool(gradient.any()) for gradient in gradients)


def _difference(one: PreTrainedModel, other: PreTrainedModel) -> float:
    """Length of the difference of all hidden states of real tokens, relative to theirs.

    Taken of all together: how a CPU adds up a product depends on where its factors happen to lie in memory, and in
    single tokens of a recurrence that grows to 1e-6.
    """
    batch = make_batch(one, PADDING)
    before, after = (hidden_of(model, batch.ids, batch.mask)[batch.mask.bool()] for model in (one, other))
    return float((after - before).norm() / before.norm())


@torch.no_grad()
def hidden_of(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Last hidden states (rows, tokens, dim)."""
    return _hidden(model, ids, mask)


def _hidden(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    hidden: Tensor = body_of(model)(input_ids=ids, attention_mask=mask)[0]
    return hidden


def _change(before: Tensor, after: Tensor) -> float:
    """Length of the largest difference of a token's state, relative to the mean length of a state."""
    return float((after - before).norm(dim=-1).max() / before.norm(dim=-1).mean())
