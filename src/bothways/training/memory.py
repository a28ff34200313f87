"""How much goes through the model at once; less of it when the memory runs out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from bothways import hardware
from bothways.encoder import Encoder
from bothways.errors import TrainingError
from bothways.packing import Packing
from bothways.training.processes import Place
from bothways.training.settings import CheckpointingWish

Result = TypeVar("Result")
Say = Callable[[str], None]


class Memory:
    """The micro-batch in tokens, and whether activations are computed a second time instead of kept.

    Neither changes a result, but for the dropout that a forward pass draws.
    """

    def __init__(
        self,
        encoder: Encoder,
        packed: Packing,
        longest: int,
        tokens: int,
        wish: CheckpointingWish,
        say: Say,
        place: Place,
    ) -> None:
        self.place = place
        self.encoder, self.packed, self.longest = encoder, packed, longest
        self.tokens, self.wish, self.say = tokens, wish, say
        self.checkpointing = False
        if wish == "on":
            self.checkpoint()

    def cut(self, lengths: Sequence[int]) -> list[list[int]]:
        """Lengths of rows -> positions of those that go through the model together."""
        return self.packed.groups(lengths, self.tokens)

    def checkpoint(self) -> None:
        """Compute activations a second time in the backward pass. Raises TrainingError if the model cannot."""
        if self.checkpointing:
            return
        try:
            self.encoder.model.activation_checkpointing_enable({"use_reentrant": False})
        except ValueError as problem:
            raise TrainingError(
                f'gradient_checkpointing="on": {str(problem).splitlines()[0]} Use gradient_checkpointing="off".'
            ) from None
        self.checkpointing = True

    def release(self) -> None:
        """Keep activations again."""
        if self.checkpointing:
            self.encoder.model.activation_checkpointing_disable()
            self.checkpointing = False

    def fits(self, compute: Callable[[], Result], drop: Callable[[], None]) -> Result:
        """`compute()`; where the memory runs out in it, `drop()` what is half done and again with less at once.

        Raises TrainingError where less is not possible.
        """
        from accelerate.utils.memory import clear_device_cache

        while True:
            try:
                return compute()
            except Exception as problem:
                if not hardware.is_out_of_memory(problem):
                    raise
            # Outside of the handler, which holds on to the frames and so to what is in them.
            drop()
            clear_device_cache(garbage_collection=True)
            self._shrink()

    def take(self, tokens: float, checkpointing: bool) -> None:
        """What all processes have agreed on."""
        self.tokens = min(self.tokens, math.floor(tokens))
        if checkpointing:
            self.checkpoint()

    def _shrink(self) -> None:
        if self.place.in_step and self.place.processes > 1:
            raise TrainingError(
                f"process {self.place.rank} is out of memory with {self.tokens:,} tokens at once, and processes that "
                "share weights cannot take a step again one by one. Start again with a smaller tokens_per_batch, or "
                'gradient_checkpointing="on".'
            )
        if self.tokens > self.longest:
            before, self.tokens = self.tokens, max(self.tokens // 2, self.longest)
            self.say(f"out of memory: {self.tokens:,} tokens at once instead of {before:,}, the same step again")
            return
        if self.wish == "auto" and not self.checkpointing and self.encoder.model.supports_gradient_checkpointing:
            self.checkpoint()
            self.say(
                f"out of memory with {self.tokens:,} tokens at once, the longest row: gradient checkpointing from now "
                "on, the same step again"
            )
            return
        checkpointed = " and gradient checkpointing" if self.checkpointing else ""
        raise TrainingError(
            f"out of memory with {self.tokens:,} tokens at once{checkpointed}; less is not possible, the longest row "
            f'has {self.longest:,}. Use shorter rows (max_length, block_size), precision="bf16", tune="lora", '
            'gradient_checkpointing="auto", or (contrastive stages) grad_cache=True or a smaller batch_size.'
        )
