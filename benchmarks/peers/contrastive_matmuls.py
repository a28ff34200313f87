"""The floor of a contrastive step: each text once, forward and backward, without padding; and the similarities."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.peers.matmuls import Product, linear, measure, trunk
from benchmarks.peers.triplets import COLUMNS, TripletsJob, triplets
from benchmarks.peers.wire import Gate

SIMILARITIES = "similarities"


def products(config: Any, given: TripletsJob) -> Iterator[Product]:
    """Every matrix multiplication that one step cannot do without. What caching repeats is not among them."""
    # The tokenizer has one token per word.
    yield from trunk(config, given, [len(row[column].split()) for row in triplets(given) for column in COLUMNS])
    documents = (len(COLUMNS) - 1) * given.batch
    yield from linear(SIMILARITIES, given.batch, config.hidden_size, documents, 1, trained=True, inputs=1)


def main(given: TripletsJob) -> None:
    """Measure them."""
    from transformers import AutoConfig

    gate = Gate(given.device)
    gate.before_model()
    measure(list(products(AutoConfig.from_pretrained(given.folder), given)), given, gate)


if __name__ == "__main__":
    main(TripletsJob.given())
