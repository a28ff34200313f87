"""Parity with a plain loop, for every pooling; odd, distinct sizes."""

from __future__ import annotations

import pytest
import torch

from bothways.errors import ConfigError
from bothways.pooling import POOLINGS, pool

HIDDEN = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(1))
KEEP = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 0, 0, 0], [0, 1, 1, 1, 1, 0, 0]]).bool()


def by_hand(how: str) -> torch.Tensor:
    rows = []
    for hidden, keep in zip(HIDDEN, KEEP, strict=True):
        kept = hidden[keep]
        weights = torch.arange(1.0, len(kept) + 1)
        rows.append(
            {
                "mean": kept.sum(0) / len(kept),
                "weighted_mean": (kept * weights[:, None]).sum(0) / weights.sum(),
                "last": kept[-1],
                "cls": kept[0],
            }[how]
        )
    return torch.stack(rows)


@pytest.mark.parametrize("how", POOLINGS)
def test_pooling_equals_a_plain_loop(how: str) -> None:
    torch.testing.assert_close(pool(HIDDEN, KEEP, how), by_hand(how), rtol=0, atol=1e-6)


def test_pooling_is_done_in_float32() -> None:
    assert pool(HIDDEN.bfloat16(), KEEP, "mean").dtype == torch.float32
    assert pool(HIDDEN.double(), KEEP, "mean").dtype == torch.float64


def test_an_unknown_pooling_is_named() -> None:
    with pytest.raises(ConfigError, match=r'pooling="max" is not known. Use one of mean, weighted_mean, last, cls'):
        pool(HIDDEN, KEEP, "max")
