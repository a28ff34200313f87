"""MNTP by transformers alone: a converted model, the same adapters, and the logits of every position."""

from __future__ import annotations

from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.peers.masked import MaskedJob
from benchmarks.peers.mntp_trainer import loss_of, train_masked
from benchmarks.peers.wire import Gate, weights_dtype
from bothways import MNTP, make_bidirectional
from bothways.training import adapters


def main(given: MaskedJob) -> None:
    """`AutoModelForCausalLM` and the Trainer; of bothways there are step 1 and where the adapters go."""
    gate = Gate(given.device)
    settings = MNTP(lora_r=given.lora_r, lora_alpha=given.lora_alpha, lora_dropout=given.lora_dropout)
    gate.before_model()
    model = AutoModelForCausalLM.from_pretrained(
        given.folder, attn_implementation=given.attention, dtype=weights_dtype(given)
    ).to(given.device)
    make_bidirectional(model)
    loss = loss_of(model, given)
    if given.tune == "lora":
        model.requires_grad_(False)
        adapters.attach(model.base_model, settings)
    tokenizer = AutoTokenizer.from_pretrained(given.folder)
    tokenizer.mask_token = "_"
    train_masked(model, tokenizer, given, gate, loss=loss)


if __name__ == "__main__":
    main(MaskedJob.given())
