"""Chance that is drawn from numbers one can write down, so that no generator's state has to be kept."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_everything(*numbers: int) -> None:
    """Seed torch (every device), numpy and Python from these numbers: the same numbers, the same dropout."""
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    seed = int.from_bytes(digest[:8], "little") >> 1
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def borrowed_generators() -> Iterator[None]:
    """Leave the caller's generators as they were found."""
    python, legacy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)
