"""What of an encoder a stage trains: adapters or all weights, for the length of the stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bothways.encoder import Encoder
from bothways.errors import ConfigError
from bothways.training import adapters
from bothways.training.precision import WorkingWeights
from bothways.training.settings import MNTP, Training


@contextmanager
def tuned(encoder: Encoder, settings: Training, dtype: torch.dtype) -> Iterator[WorkingWeights]:
    """The encoder in training mode, computing in `dtype`, with what `settings.tune` says ready to be trained.

    Afterwards, and also after an error, it is the plain model again: in evaluation mode, in its own number formats,
    with adapters merged; the unmerged ones are then in `encoder.adapter`, which is None after full tuning.
    """
    before = {weight: weight.requires_grad for weight in encoder.parameters()}
    weights = wrapper = None
    try:
        _choose(encoder, settings)
        wrapper = adapters.attach(encoder.model, settings) if settings.tune == "lora" else None
        weights = WorkingWeights(encoder, dtype)
        encoder.train()
        yield weights
    finally:
        if weights is not None:
            weights.restore()
            encoder.adapter = None if wrapper is None else adapters.merge(wrapper, _described(encoder))
        encoder.eval()
        for weight, wanted in before.items():
            weight.requires_grad_(wanted)


def _choose(encoder: Encoder, settings: Training) -> None:
    for weight in encoder.parameters():
        weight.requires_grad_(False)
    if settings.tune == "full":
        for weight in encoder.model.parameters():
            weight.requires_grad_(weight.is_floating_point())
    if encoder.head is None or not isinstance(settings, MNTP) or not settings.train_head:
        return
    if encoder.head.tied and settings.tune == "lora":
        raise ConfigError(
            'MNTP(train_head=True, tune="lora"): the head of this model is its input embedding, which adapters leave '
            'frozen. Use tune="full", or train_head=False.'
        )
    for weight in encoder.head.parameters():
        weight.requires_grad_(True)


def _described(encoder: Encoder) -> str:
    """What an adapter sits on: the base, and the stages that are merged into it."""
    stages = [str(stage["stage"]) for stage in encoder.record.stages]
    return " + ".join([encoder.record.base, *stages])
