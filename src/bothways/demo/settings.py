"""What the demo does at each step: chosen on the dev split, for two CPU cores and a few minutes."""

from __future__ import annotations

from dataclasses import dataclass

from bothways.training.settings import MNTP, SimCSE, Supervised


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The three stages, and how much is read of a text."""

    base: str = "embedded"
    """The decoder: the one that comes with bothways, a folder, or a name."""
    max_length: int = 128
    """Tokens read of one text when it is encoded."""
    mntp: MNTP
    simcse: SimCSE
    supervised: Supervised


RECIPE = Recipe(
    # The decoder is small enough to train whole, at rates that a large one would not survive.
    mntp=MNTP(
        steps=40,
        batch_size=16,
        block_size=256,
        tokens_per_batch=2048,
        learning_rate=1e-3,
        warm_up=0.1,
        tune="full",
        held_out_items=16,
        save_every=0,
    ),
    simcse=SimCSE(
        steps=20,
        batch_size=64,
        max_length=48,
        tokens_per_batch=2048,
        learning_rate=1e-4,
        warm_up=0.1,
        tune="full",
        held_out_items=64,
        save_every=0,
    ),
    supervised=Supervised(
        steps=160,
        batch_size=160,
        max_length=48,
        tokens_per_batch=2048,
        learning_rate=2e-3,
        warm_up=0.1,
        temperature=0.04,
        tune="full",
        held_out_items=160,
        save_every=0,
    ),
)
QUESTIONS = (
    "read lines from a compressed file",
    "run a command and get its output",
    "count how often each element occurs",
    "wait until another thread is done",
    "find files whose names match a pattern",
)
