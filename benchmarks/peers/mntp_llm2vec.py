"""llm2vec 0.2.3's MNTP step, in its own environment: its model class, adapters and loss, and the Trainer it uses."""

from __future__ import annotations

# peft looks for torch.distributed.tensor without importing it.
import torch.distributed.tensor  # noqa: F401
from llm2vec.models import LlamaBiForMNTP
from peft import get_peft_model
from transformers import PreTrainedTokenizerFast

from benchmarks.peers.masked import MaskedJob
from benchmarks.peers.mntp_trainer import loss_of, train_masked
from benchmarks.peers.trainer import adapters
from benchmarks.peers.wire import Gate, weights_dtype


def main(given: MaskedJob) -> None:
    """As its training script does: load, put adapters on the trunk, mask "_" and train; it never trains in full."""
    gate = Gate(given.device)
    gate.before_model()
    model = LlamaBiForMNTP.from_pretrained(
        given.folder, attn_implementation=given.attention, torch_dtype=weights_dtype(given)
    ).to(given.device)
    loss = loss_of(model, given)
    if given.tune == "lora":
        model.set_model_for_peft(get_peft_model(model.get_model_for_peft(), adapters(given)))
    # The file that newer tokenizers wrote is read, the settings beside it are not: their class has another name now.
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=f"{given.folder}/tokenizer.json",
        pad_token="</s>",
        model_input_names=["input_ids", "attention_mask"],
    )
    tokenizer.mask_token = "_"
    train_masked(model, tokenizer, given, gate, loss=loss)


if __name__ == "__main__":
    main(MaskedJob.given())
