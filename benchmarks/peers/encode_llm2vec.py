"""llm2vec 0.2.3's `encode`, in its own environment, with its own defaults but for its cap of 400 tokens."""

from __future__ import annotations

import torch
from llm2vec import LLM2Vec
from llm2vec.models import LlamaBiModel
from transformers import PreTrainedTokenizerFast

from benchmarks.peers.passages import EncodeJob, blanked, passages, serve
from benchmarks.peers.wire import Gate


def main(given: EncodeJob) -> None:
    """Load as its documentation does, and encode until the gate says stop."""
    gate = Gate(given.device)
    texts = passages(given)
    gate.before_model()
    dtype = torch.float32 if given.dtype == "auto" else getattr(torch, given.dtype)
    model = LlamaBiModel.from_pretrained(given.folder, attn_implementation=given.attention, torch_dtype=dtype)
    if given.blank:
        blanked(model)
    # The file that newer tokenizers wrote is read, the settings beside it are not: their class has another name now.
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=f"{given.folder}/tokenizer.json",
        pad_token="</s>",
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )
    encoder = LLM2Vec(
        model=model, tokenizer=tokenizer, pooling_mode="mean", max_length=given.tokens, doc_max_length=given.tokens
    )
    serve(
        gate,
        lambda some: encoder.encode(some, show_progress_bar=False, convert_to_numpy=True, device=given.device),
        texts,
        dtype=str(dtype),
        attention=given.attention,
    )


if __name__ == "__main__":
    main(EncodeJob.given())
