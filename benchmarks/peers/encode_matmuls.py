"""The floor of an encode run: each text once, forward, without padding, in packs of a size that is fast."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.matmuls import Product, measure, trunk
from benchmarks.peers.passages import EncodeJob, passages
from benchmarks.peers.wire import Gate
from bothways import hardware, loading


def products(config: Any, given: EncodeJob) -> Iterator[Product]:
    """Every matrix multiplication that one pass cannot do without."""
    tokenizer = loading.load_tokenizer(Path(given.folder), trust_remote_code=False)
    lengths = [min(len(ids), given.tokens) for ids in tokenizer(passages(given))["input_ids"]]
    packs = hardware.choose_tokens_per_batch(None, torch.device(given.device), 1).value
    for product in trunk(config, given, lengths, backward=False):
        if product.groups == 1 and product.rows > packs:
            # As many rows, a pack at a time.
            yield replace(product, rows=packs, count=product.count * round(product.rows / packs))
        else:
            yield product


def main(given: EncodeJob) -> None:
    """Measure them."""
    from transformers import AutoConfig

    gate = Gate(given.device)
    gate.before_model()
    number = str(hardware.choose_dtype(given.dtype, torch.device(given.device)).value).removeprefix("torch.")
    given = replace(given, dtype=number)
    measure(list(products(AutoConfig.from_pretrained(given.folder), given)), given, gate)


if __name__ == "__main__":
    main(EncodeJob.given())
