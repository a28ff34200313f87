"""`bothways.supervised` as anyone calls it, with `grad_cache` where the peer caches too; held between two steps."""

from __future__ import annotations

import torch

from benchmarks.peers.held import common, held
from benchmarks.peers.triplets import COLUMNS, TripletsJob, triplets
from benchmarks.peers.wire import Gate, weights_dtype
from bothways import Encoder, Supervised, convert, supervised
from bothways.data import Example
from bothways.training.losses import info_nce


def main(given: TripletsJob) -> None:
    """Convert, and train until the gate says stop."""
    gate = Gate(given.device)
    examples = [Example(row["query"], row["positive"], (row["negative"],)) for row in triplets(given)]
    gate.before_model()
    wish = {} if given.attention == "auto" else {"attn_implementation": given.attention}
    encoder = convert(given.folder, device=given.device, dtype=weights_dtype(given), **wish)
    facts = {"loss": loss_of(encoder, given)}
    settings = Supervised(**common(given), warm_up=0.0, temperature=given.temperature, grad_cache=given.mini_batch > 0)
    with held(gate, encoder, facts):
        supervised(encoder, examples, settings, show_progress=False)


def loss_of(encoder: Encoder, given: TripletsJob) -> float:
    """The loss of the batch, of vectors as the encoder gives them to anyone."""
    rows = triplets(given)
    columns = [torch.from_numpy(encoder.encode([row[column] for row in rows])) for column in COLUMNS]
    return float(info_nce(columns[0], torch.cat(columns[1:]), temperature=given.temperature))


if __name__ == "__main__":
    main(TripletsJob.given())
