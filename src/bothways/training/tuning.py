"""What of an encoder a stage trains: adapters or all weights, for the length of the stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from bothways.encoder import Encoder
from bothways.errors import ConfigError
from bothways.training import adapters, mask_row
from bothways.training.precision import WorkingWeights
from bothways.training.quantised import four_bit
from bothways.training.settings import MNTP, Training

TEMPERATURE = "temperature"
"""Name of the encoder's part that is the temperature, while one is trained."""


@contextmanager
def tuned(encoder: Encoder, settings: Training, dtype: torch.dtype) -> Iterator[WorkingWeights]:
    """The encoder in training mode, computing in `dtype`, with what `settings.tune` says ready to be trained.

    Afterwards, and also after an error, it is the plain model again: in evaluation mode, in its own number formats,
    with adapters merged; the unmerged ones are then in `encoder.adapter`, which is None after full tuning. With
    `merge_back` what is trained ends as the mean with what it was.
    """
    before = {weight: weight.requires_grad for weight in encoder.parameters()}
    model = encoder.model
    merge_back = settings.merge_back if isinstance(settings, MNTP) else 0.0
    weights = wrapper = row = None
    untrained: dict[str, Tensor] = {}
    with _packed(encoder, settings, dtype) as originals:
        try:
            choose(encoder, settings)
            if settings.tune != "full":
                wrapper = adapters.attach(model, settings, originals)
                row = _mask_row(encoder, settings)
            weights = WorkingWeights(encoder, dtype)
            untrained = _copies(weights) if merge_back else {}
            encoder.train()
            yield weights
        finally:
            if weights is not None:
                _mix(weights, untrained, merge_back)
                weights.restore()
                encoder.adapter = None
            if row is not None:
                row.take_off()
            if wrapper is not None:
                encoder.adapter = adapters.merge(
                    wrapper, encoder.record.described, merge_back=merge_back, originals=originals
                )
            encoder.eval()
            for weight, wanted in before.items():
                weight.requires_grad_(wanted)


def _packed(encoder: Encoder, settings: Training, dtype: torch.dtype) -> AbstractContextManager[dict[str, nn.Module]]:
    if settings.tune != "qlora":
        return nullcontext({})
    return four_bit(encoder.model, adapters.linear_layers(encoder.model), dtype)


def _mask_row(encoder: Encoder, settings: Training) -> mask_row.TrainedRow | None:
    """A mask token of its own, which adapters would leave as it began."""
    if not isinstance(settings, MNTP) or settings.mask_token != mask_row.NEW:
        return None
    row = mask_row.find_row(encoder)
    assert row is not None, "the stage makes the row before it is trained"
    return mask_row.TrainedRow(encoder, row)


def _copies(weights: WorkingWeights) -> dict[str, Tensor]:
    """What is trained besides adapters, which are mixed where they are merged; on the CPU, to be out of the way."""
    return {
        name: master.detach().to("cpu", copy=True) for name, master in weights.masters.items() if "lora_" not in name
    }


@torch.no_grad()
def _mix(weights: WorkingWeights, untrained: Mapping[str, Tensor], share: float) -> None:
    for name, value in untrained.items():
        weights.masters[name].lerp_(value.to(weights.masters[name].device), share)


def choose(encoder: Encoder, settings: Training) -> None:
    """Say of every weight whether it is trained; adapters come on top. Raises ConfigError for a tied, frozen head."""
    for name, weight in encoder.named_parameters():
        weight.requires_grad_(name.startswith(f"{TEMPERATURE}."))
    if settings.tune == "full":
        for weight in encoder.model.parameters():
            weight.requires_grad_(weight.is_floating_point())
    if encoder.head is None or not isinstance(settings, MNTP) or not settings.train_head:
        return
    if encoder.head.tied and settings.tune != "full":
        raise ConfigError(
            f'MNTP(train_head=True, tune="{settings.tune}"): the head of this model is its input embedding, which '
            'adapters leave frozen. Use tune="full", or train_head=False.'
        )
    for weight in encoder.head.parameters():
        weight.requires_grad_(True)
