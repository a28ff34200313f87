"""A stage of bothways as anyone calls it, held between two steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from benchmarks.peers.parts import Profile
from benchmarks.peers.wire import MANY_STEPS, Gate, Job
from bothways.encoder import Encoder
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
        if not self.gate.step(loss=loss):
            raise StoppedError


@contextmanager
def held(gate: Gate, encoder: Encoder, facts: dict[str, Any]) -> Iterator[None]:
    """The loop, inside, stops at the gate after every step. This is all that knows how the loop is built."""
    steps = Steps(gate, encoder, facts)

    @contextmanager
    def progress(*_: Any, **__: Any) -> Iterator[Steps]:
        yield steps

    own = loop.progress
    loop.progress = progress
    try:
        with suppress(StoppedError):
            yield
    finally:
        loop.progress = own


def common(given: Job) -> dict[str, Any]:
    """Settings of a stage that all benchmarks share."""
    return {
        "steps": MANY_STEPS,
        "batch_size": given.batch,
        "tune": given.tune,
        "lora_r": given.lora_r,
        "lora_alpha": given.lora_alpha,
        "lora_dropout": given.lora_dropout,
        "learning_rate": given.learning_rate,
        "precision": "bf16" if given.dtype == "bfloat16" else "fp32",
        "held_out_items": 0,
    }
