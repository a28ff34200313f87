"""The devices that a plan is made for: how much they hold, how fast they compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from bothways import hardware
from bothways.errors import ConfigError

Sharding = Literal["none", "fsdp"]

SHARE_OF_PEAK = 0.4
"""Share of a data sheet's FLOP rate that training reaches: dense models of 1 to 8 billion weights on one device report
35 to 50 %, smaller ones and adapters less."""
SHARE_OF_MEASURED = 0.45
"""Share of a matmul rate that was measured here. MNTP steps of a Llama of 17 million weights on one core reached 0.45
to 0.75 in float32 and 0.25 to 0.37 in bfloat16, so that a time is right within a factor of two."""


@dataclass(frozen=True)
class Target:
    """The devices that are planned for. `rate`: FLOP/s of matrix products in a number format, before `share`."""

    name: str
    device: torch.device
    memory: int
    """Bytes of one device."""
    rate: Callable[[torch.dtype], float]
    share: float
    why: str
    count: int = 1
    sharding: Sharding = "none"

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigError(f"count={self.count}: expected at least one device.")
        if self.sharding == "fsdp" and self.count == 1:
            raise ConfigError('sharding="fsdp" spreads the weights over devices, but count=1. Use count=2 or more.')

    @classmethod
    def named(cls, gpu: str, *, count: int = 1, sharding: Sharding = "none") -> Target:
        """Devices that need not be there. Raises ConfigError for an unknown name or a wrong count."""
        known = hardware.accelerator(gpu)
        why = f"{SHARE_OF_PEAK:.0%} of the peak in the {known.source}"
        return cls(gpu, torch.device("cuda"), known.memory, known.rate, SHARE_OF_PEAK, why, count, sharding)

    @classmethod
    def at_hand(cls) -> Target:
        """The device on which this machine would train; its FLOP rate is measured, for a second, when it is asked."""
        device = hardware.choose_device().value

        def rate(dtype: torch.dtype) -> float:
            return hardware.matmul_rate(device, dtype)

        why = f"{SHARE_OF_MEASURED:.0%} of the rate of matrix products that was measured just now"
        memory = hardware.memory_bytes(device)
        return cls(f"this machine's {device.type}", device, memory, rate, SHARE_OF_MEASURED, why)

    def dtype(self, wish: str) -> torch.dtype:
        """The number format for a precision: bfloat16 where a named device may choose, for all of them multiply it."""
        if wish == "auto" and self.name in hardware.ACCELERATORS:
            return torch.bfloat16
        return hardware.choose_dtype(wish, self.device).value
