"""`bothways.mntp` as anyone calls it, held between two steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.peers.parts import Profile
from benchmarks.peers.wire import MANY_STEPS, Gate, Job, job, masked_batch, texts, weights_dtype
from bothways import MNTP, convert, mntp
from bothways.encoder import Encoder
from bothways.stages.mntp import mntp_loss
from bothways.training import loop


class StoppedError(Exception):
    """The last step that was asked for is done."""


class Steps:
    """Stands where the progress bar does: the loop calls it after every step, and it holds the loop there."""

    def __init__(self, gate: Gate, encoder: Encoder, facts: dict[str, Any]) -> None:
        self.gate, self.encoder, self.facts = gate, encoder, facts
        self.begun = False

    def say(self, message: str) -> None:
        """The first word of the loop comes when the encoder is ready to be trained: adapters on, in training mode."""
        if self.begun or not self.encoder.training:
            return
        self.begun = True
        trained = sum(weight.numel() for weight in self.encoder.parameters() if weight.requires_grad)
        attention = self.encoder.model.config._attn_implementation
        self.gate.profiled(Profile(self.encoder))
        if not self.gate.open(trained=trained, attention=attention, optimiser="adamw_torch_fused", **self.facts):
            raise StoppedError

    def step(self, done: int, loss: float, tokens_per_second: float) -> None:
        """One more step is done."""
        if not self.gate.step():
            raise StoppedError


@contextmanager
def held(steps: Steps) -> Iterator[None]:
    """The loop, inside, reports to `steps`. This is all that knows how the loop is built."""

    @contextmanager
    def progress(*_: Any, **__: Any) -> Iterator[Steps]:
        yield steps

    own = loop.progress
    loop.progress = progress
    try:
        yield
    finally:
        loop.progress = own


def main(given: Job) -> None:
    """Convert, and train until the gate says stop."""
    gate = Gate(given.device)
    rows = texts(given)
    gate.before_model()
    wish = {} if given.attention == "auto" else {"attn_implementation": given.attention}
    encoder = convert(given.folder, device=given.device, dtype=weights_dtype(given), **wish)
    facts = {"loss": loss_of(encoder, given)}
    settings = MNTP(
        steps=MANY_STEPS,
        batch_size=given.batch,
        block_size=given.tokens,
        mask_rate=given.mask_rate,
        tune=given.tune,
        lora_r=given.lora_r,
        lora_alpha=given.lora_alpha,
        lora_dropout=given.lora_dropout,
        learning_rate=given.learning_rate,
        precision="bf16" if given.dtype == "bfloat16" else "fp32",
        held_out_items=0,
    )
    try:
        with held(Steps(gate, encoder, facts)):
            mntp(encoder, rows, settings, show_progress=False)
    except StoppedError:
        return


@torch.no_grad()
def loss_of(encoder: Encoder, given: Job) -> float:
    """Mean cross-entropy of the common masked batch, without dropout."""
    ids, labels = (tensor.tolist() for tensor in masked_batch(given))
    total, count = mntp_loss(encoder, ids, labels)
    return float(total) / count


if __name__ == "__main__":
    main(job())
