"""`bothways.mntp` as anyone calls it, held between two steps."""

from __future__ import annotations

import torch

from benchmarks.peers.held import common, held
from benchmarks.peers.masked import MaskedJob, masked_batch, texts
from benchmarks.peers.wire import Gate, weights_dtype
from bothways import MNTP, convert, mntp
from bothways.encoder import Encoder
from bothways.stages.mntp import mntp_loss


def main(given: MaskedJob) -> None:
    """Convert, and train until the gate says stop."""
    gate = Gate(given.device)
    rows = texts(given)
    gate.before_model()
    wish = {} if given.attention == "auto" else {"attn_implementation": given.attention}
    encoder = convert(given.folder, device=given.device, dtype=weights_dtype(given), **wish)
    facts = {"loss": loss_of(encoder, given)}
    settings = MNTP(**common(given), block_size=given.tokens, mask_rate=given.mask_rate)
    with held(gate, encoder, facts):
        mntp(encoder, rows, settings, show_progress=False)


@torch.no_grad()
def loss_of(encoder: Encoder, given: MaskedJob) -> float:
    """Mean cross-entropy of the common masked batch, without dropout."""
    ids, labels = (tensor.tolist() for tensor in masked_batch(given))
    total, count = mntp_loss(encoder, ids, labels)
    return float(total) / count


if __name__ == "__main__":
    main(MaskedJob.given())
