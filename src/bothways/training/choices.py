"""What a run chooses by itself where its settings leave it open: once, at the start; a resumed run has the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from bothways import hardware
from bothways.errors import TrainingError
from bothways.packing import Packing, packing
from bothways.training.precision import computing_in
from bothways.training.settings import Training

AGAIN = "as the run began"


@dataclass(frozen=True)
class Choices:
    """What was chosen; stands in the checkpoint and in the record."""

    attn_implementation: str
    packed: bool
    precision: str
    tokens_per_batch: int
    gradient_checkpointing: bool

    def plain(self) -> dict[str, Any]:
        """As a checkpoint holds it."""
        return asdict(self)


def stored(saved: Mapping[str, Any] | None) -> Choices | None:
    """What the run before chose, if there was one."""
    return None if saved is None else Choices(**saved["choices"])


def choose_precision(settings: Training, before: Choices | None, device: Any) -> hardware.Precision:
    """The number format to compute in."""
    if settings.precision == "auto" and before is not None:
        return hardware.Precision(hardware.DTYPES[before.precision], AGAIN)
    return hardware.choose_dtype(settings.precision, device)


def choose_tokens(settings: Training, before: Choices | None, device: Any, longest: int) -> hardware.MicroBatch:
    """Tokens that go through the model at once. Those of the run before, which may have run out of memory with more."""
    if before is not None:
        return hardware.MicroBatch(before.tokens_per_batch, AGAIN)
    return hardware.choose_tokens_per_batch(settings.tokens_per_batch, device, longest, cached=caches(settings))


def caches(settings: Training) -> bool:
    """Whether GradCache is on; stages without contrast have none."""
    return bool(getattr(settings, "grad_cache", False))


@contextmanager
def chosen_packing(model: PreTrainedModel, before: Choices | None, dtype: torch.dtype) -> Iterator[Packing]:
    """`packing`, measured in `dtype`, unless the run before did without.

    Raises TrainingError if it packed and that is no longer exact.
    """
    if before is not None and not before.packed:
        yield Packing(False, f"padded rows, {AGAIN}")
        return
    with ExitStack() as stack:
        # The kernel depends on the number format, and is to be the one that trains.
        with computing_in(model, dtype):
            found = stack.enter_context(packing(model))
        if before is not None and not found.packed:
            raise TrainingError(
                f"this run began with packed rows, which are no longer to be had: {found.why}. Go on with the versions "
                "and the device it began with, or start anew without --resume in another folder."
            )
        yield found
