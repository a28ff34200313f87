"""Mask token "new": a row of the input embedding that no token has. Made, trained alone if need be, found again."""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bothways.encoder import Encoder
from bothways.errors import ConfigError
from bothways.provenance import Record
from bothways.training.masking import MaskToken

NEW = "new"
NAME = "mask_row"
"""What the trained row is called among the encoder's parameters, for the length of a stage."""


def recorded_row(record: Record) -> int | None:
    """The row that an earlier stage trained as its mask token, if one did."""
    found = (stage.get("mask_token") or {} for stage in reversed(record.stages))
    return next((int(mask["id"]) for mask in found if mask.get("new")), None)


def find_row(encoder: Encoder) -> int | None:
    """The row of an earlier stage, else the first that no token has; None if the vocabulary fills the embedding."""
    known = recorded_row(encoder.record)
    if known is not None:
        return known
    spare = max(encoder.tokenizer.get_vocab().values()) + 1
    return spare if spare < _embedding(encoder).weight.shape[0] else None


@torch.no_grad()
def make_row(encoder: Encoder) -> MaskToken:
    """The row of an earlier stage as it is, else one that starts at the mean of all tokens' rows, in place.

    That is a spare row, or one that is appended: the embedding and the config's `vocab_size` then grow by one, a tied
    head with them (it is the same parameter); an untied one keeps its rows. The tokenizer never changes.

    Raises ConfigError if other weights are as long as the vocabulary.
    """
    known = recorded_row(encoder.record)
    if known is not None:
        return MaskToken(known, NEW, f"row {known} of the embedding, as in an earlier stage", new=True)
    embedding, row = _embedding(encoder), find_row(encoder)
    tokens = max(encoder.tokenizer.get_vocab().values()) + 1
    mean = mean_row(encoder)
    if row is not None:
        embedding.weight[row] = mean
        return MaskToken(row, NEW, f"row {row} of the embedding, which no token had", new=True)
    _append(encoder, mean)
    return MaskToken(tokens, NEW, f"row {tokens}, appended to the embedding", new=True)


@torch.no_grad()
def mean_row(encoder: Encoder) -> Float[Tensor, " dim"]:
    """Where a new row starts: the mean of all tokens' rows, in their dtype."""
    weight = _embedding(encoder).weight
    tokens = max(encoder.tokenizer.get_vocab().values()) + 1
    mean: Tensor = weight[:tokens].float().mean(dim=0).to(weight.dtype)
    return mean


def _embedding(encoder: Encoder) -> Any:
    return encoder.model.get_input_embeddings()


def _append(encoder: Encoder, mean: Float[Tensor, " dim"]) -> None:
    model, head, embedding = encoder.model, encoder.head, _embedding(encoder)
    before = embedding.weight
    rows = before.shape[0]
    _check_growth(encoder)
    embedding.weight = nn.Parameter(torch.cat([before, mean[None]]), requires_grad=before.requires_grad)
    embedding.num_embeddings = rows + 1
    if head is not None and head.tied:
        head.weight = embedding.weight
        if head.bias is not None:
            head.bias = nn.Parameter(torch.cat([head.bias, head.bias.new_zeros(1)]), head.bias.requires_grad)
    for part in (model.config, model.config.get_text_config(), *model.modules()):
        if getattr(part, "vocab_size", None) == rows:
            setattr(part, "vocab_size", rows + 1)  # noqa: B010 (whatever class it is of)


def _check_growth(encoder: Encoder) -> None:
    """Raises ConfigError unless a config with one more token asks for one more row here, and for nothing else."""
    model, own = encoder.model, _embedding(encoder).weight
    config = copy.deepcopy(model.config)
    config.get_text_config().vocab_size += 1
    with torch.device("meta"):
        wanted = dict(type(model)(config).named_parameters())
    for name, weight in model.named_parameters():
        grown = (weight.shape[0] + 1, *weight.shape[1:]) if weight is own else tuple(weight.shape)
        if name in wanted and tuple(wanted[name].shape) != grown:
            raise ConfigError(
                f'MNTP(mask_token="new"): the vocabulary fills the embedding of {type(model).__name__}, and one more '
                f'row of it would not fit {name} {tuple(weight.shape)}. Use mask_token="auto", or a token.'
            )


class TrainedRow:
    """The row as a parameter of the encoder, while the embedding around it is frozen.

    Before each pass the parameter's value is written into the matrix, where a tied head reads it too; the gradient of
    the row's places goes to the parameter alone. It trains through the input, not as an output of a tied head.
    """

    def __init__(self, encoder: Encoder, row: int) -> None:
        """Raises ConfigError if the embedding gives something else than a multiple of its row."""
        self.encoder, self.row = encoder, row
        embedding = _embedding(encoder)
        self.scale = _scale(embedding, row)
        encoder.register_parameter(NAME, nn.Parameter(embedding.weight[row].detach().float().clone()))
        self.hooks = [embedding.register_forward_pre_hook(self._write), embedding.register_forward_hook(self._lead)]

    @property
    def value(self) -> nn.Parameter:
        """The row, (dim,)."""
        return self.encoder.get_parameter(NAME)

    @torch.no_grad()
    def _write(self, embedding: Any, inputs: Any) -> None:
        embedding.weight[self.row].copy_(self.value)

    def _lead(self, embedding: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        # Adds nothing but a way for the gradient.
        way = self.scale * (self.value - self.value.detach())
        led: Tensor = output + (inputs[0] == self.row)[..., None] * way.to(output.dtype)
        return led

    def take_off(self) -> None:
        """Write the row into the matrix for good; the encoder has no such parameter any more."""
        for hook in self.hooks:
            hook.remove()
        self._write(_embedding(self.encoder), None)
        delattr(self.encoder, NAME)


@torch.no_grad()
def _scale(embedding: Any, row: int) -> float:
    """What the family multiplies embeddings by (Gemma: the root of the dimension)."""
    own = embedding.weight[row].float()
    found = embedding(torch.tensor([row], device=own.device))[0].float()
    if found.shape == own.shape:
        scale = float(found @ own / (own @ own))
        if (found - scale * own).abs().max() <= 0.02 * found.abs().max():
            return scale
    raise ConfigError(
        f'MNTP(mask_token="new"): {type(embedding).__name__} gives no multiple of its row {row}, which can therefore '
        'not be trained alone. Use tune="full", mask_token="auto", or a token.'
    )
