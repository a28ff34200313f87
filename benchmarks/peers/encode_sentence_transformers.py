"""sentence-transformers' `encode` on a model that sees both ways, with its own defaults."""

from __future__ import annotations

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

from benchmarks.peers.passages import EncodeJob, blanked, passages, serve
from benchmarks.peers.wire import Gate
from bothways.bidirectional.probe import probe


def main(given: EncodeJob) -> None:
    """The config says that the model is not causal, and each layer is proved to follow."""
    gate = Gate(given.device)
    texts = passages(given)
    gate.before_model()
    # Without a word from the caller weights are loaded as the checkpoint has them: float32 here.
    dtype = {} if given.dtype == "auto" else {"dtype": getattr(torch, given.dtype)}
    transformer = Transformer(
        given.folder, max_seq_length=given.tokens, model_kwargs={"attn_implementation": given.attention, **dtype}
    )
    transformer.auto_model.config.is_causal = False
    probe(transformer.auto_model).require_bidirectional()
    if given.blank:
        blanked(transformer.auto_model)
    pooling = Pooling(transformer.get_embedding_dimension(), "mean")
    model = SentenceTransformer(modules=[transformer, pooling, Normalize()], device=given.device)
    serve(
        gate,
        lambda some: model.encode(some, show_progress_bar=False),
        texts,
        dtype=str(transformer.auto_model.dtype),
        attention=given.attention,
    )


if __name__ == "__main__":
    main(EncodeJob.given())
