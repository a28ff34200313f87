"""`Encoder.encode` as anyone calls it."""

from __future__ import annotations

from typing import Any

from benchmarks.peers.parts import Profile
from benchmarks.peers.passages import EncodeJob, blanked, passages, serve
from benchmarks.peers.wire import Gate
from bothways import convert


def main(given: EncodeJob) -> None:
    """Convert, and encode until the gate says stop."""
    gate = Gate(given.device)
    texts = passages(given)
    gate.before_model()
    wish: dict[str, Any] = {} if given.attention == "auto" else {"attn_implementation": given.attention}
    encoder = convert(given.folder, device=given.device, dtype=given.dtype, max_length=given.tokens, **wish)
    if given.blank:
        blanked(encoder.model)
    gate.profiled(Profile(encoder))
    serve(gate, encoder.encode, texts, dtype=str(encoder.dtype), attention=encoder.model.config._attn_implementation)


if __name__ == "__main__":
    main(EncodeJob.given())
