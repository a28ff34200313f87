"""The same architecture with random weights: what the shape and the tokenizer alone are worth."""

from __future__ import annotations

import copy

import torch

from bothways.encoder import Encoder


def random_weights(encoder: Encoder, seed: int = 0) -> Encoder:
    """A copy of `encoder` whose model is initialised as before pre-training. The original is left alone."""
    fresh = copy.deepcopy(encoder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn = type(encoder.model)(encoder.model.config)
    # The gates of recurrences that run both ways are none of the architecture's own weights.
    fresh.model.load_state_dict({**fresh.model.state_dict(), **drawn.state_dict()})
    return fresh
