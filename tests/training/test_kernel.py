"""The attention a stage computes with: the faster one where it sees the same, and the encoder's own afterwards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bothways import Encoder, convert
from bothways.training.kernel import training_attention


@pytest.fixture
def encoder(tiny_llama_folder: Path) -> Encoder:
    return convert(tiny_llama_folder, dtype="float32", device="cpu", attn_implementation="sdpa")


def test_short_rows_on_cpu_take_eager_attention_for_the_stage_alone(encoder: Encoder) -> None:
    texts = ["one text", "another text, which is longer"]
    before = encoder.encode(texts)
    with training_attention(encoder, 512) as kernel:
        assert kernel.value == encoder.model.config._attn_implementation == "eager"
        assert np.abs(encoder.encode(texts) - before).max() < 1e-5
    assert encoder.model.config._attn_implementation == "sdpa"
    with training_attention(encoder, 513) as kernel:
        assert (kernel.value, kernel.why) == ("sdpa", "as the model was loaded")


def test_attention_that_would_be_causal_is_not_taken(encoder: Encoder) -> None:
    """A kernel that hides the future in spite of the config, as eager kernels with masks of their own do."""
    layer = encoder.model.layers[1].self_attn
    plain = layer.forward

    def one_way(hidden: torch.Tensor, **kwargs: object) -> object:
        if encoder.model.config._attn_implementation == "eager":
            size = hidden.shape[1]
            kwargs["attention_mask"] = torch.full((1, 1, size, size), -1e9).triu(1)
        return plain(hidden, **kwargs)

    layer.forward = one_way
    with training_attention(encoder, 17) as kernel:
        assert encoder.model.config._attn_implementation == kernel.value == "sdpa"
        assert kernel.why == "eager does not compute the same in this model"
