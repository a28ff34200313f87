"""The floor of an MNTP step: the multiplications of the decoder layers, and of the head on predicted rows alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.peers.masked import MaskedJob
from benchmarks.peers.matmuls import Product, linear, measure, trunk
from benchmarks.peers.parts import HEAD
from benchmarks.peers.wire import Gate


def products(config: Any, given: MaskedJob) -> Iterator[Product]:
    """Every matrix multiplication that one step cannot do without."""
    yield from trunk(config, given, [given.tokens] * given.batch)
    predicted = round(given.mask_rate * given.batch * (given.tokens - 1))
    trained = given.tune == "full" and config.tie_word_embeddings
    yield from linear(HEAD, predicted, config.hidden_size, config.vocab_size, 1, trained=trained, inputs=1)


def main(given: MaskedJob) -> None:
    """Measure them."""
    from transformers import AutoConfig

    gate = Gate(given.device)
    gate.before_model()
    measure(list(products(AutoConfig.from_pretrained(given.folder), given)), given, gate)


if __name__ == "__main__":
    main(MaskedJob.given())
