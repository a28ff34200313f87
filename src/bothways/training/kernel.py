"""The attention implementation a stage computes with, where another one than the encoder's own is faster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bothways import hardware
from bothways.bidirectional.probe import probe
from bothways.encoder import Encoder
from bothways.errors import ConversionError, TrainingError


@contextmanager
def training_attention(encoder: Encoder, longest: int, before: str | None = None) -> Iterator[hardware.Kernel]:
    """The fastest attention for rows of up to `longest` tokens; the encoder's own again afterwards.

    Measured before it is used: where the model does not see the same way with it, the encoder's own stays. `before` is
    what a resumed run began with. Raises TrainingError if that can no longer be had.
    """
    model = encoder.model
    own = str(getattr(model.config, "_attn_implementation", "eager"))
    choice = hardware.choose_training_attention(own, encoder.device, longest)
    if before is not None:
        choice = hardware.Kernel(before, "as the run began")
    if choice.value == own:
        yield choice
        return
    try:
        if not _sees_the_same(encoder, choice.value):
            if before is not None:
                raise TrainingError(
                    f"this run began with {before} attention, with which this model no longer sees the same way. Go on "
                    "with the versions and the device it began with, or start anew without --resume in another folder."
                )
            model.set_attn_implementation(own)
            choice = hardware.Kernel(own, f"{choice.value} does not compute the same in this model")
        yield choice
    finally:
        model.set_attn_implementation(own)


def _sees_the_same(encoder: Encoder, attention: str) -> bool:
    try:
        encoder.model.set_attn_implementation(attention)
        return probe(encoder.model).direction == encoder.settings.direction
    except (ConversionError, AttributeError, RuntimeError, TypeError, ValueError):
        # Some eager kernels cannot run without a mask; what they raise is theirs to choose.
        return False
