"""Random weights: the same shape and tokens, other numbers, and the original untouched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from bothways import convert
from bothways.evaluation.baselines import random_weights


def test_random_weights_share_the_shape_and_nothing_else(tiny_llama_folder: Path) -> None:
    encoder = convert(tiny_llama_folder, direction="causal")
    texts = ["open a file", "close it"]
    before = encoder.encode(texts)
    torch_state = torch.get_rng_state()
    fresh, same, other = random_weights(encoder, 3), random_weights(encoder, 3), random_weights(encoder, 5)
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(encoder.encode(texts), before)
    np.testing.assert_array_equal(fresh.encode(texts), same.encode(texts))
    assert fresh.encode(texts).shape == before.shape
    assert np.abs(fresh.encode(texts) - before).max() > 0.01
    assert np.abs(fresh.encode(texts) - other.encode(texts)).max() > 0.01
    assert fresh.dtype == encoder.dtype
    assert fresh.settings == encoder.settings
