"""llm2vec 0.2.3's MNTP step, in its own environment: its model class, adapters and loss, and the Trainer it uses."""

from __future__ import annotations

# peft looks for torch.distributed.tensor without importing it.
import torch.distributed.tensor  # noqa: F401
from llm2vec.models import LlamaBiForMNTP
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedTokenizerFast

from benchmarks.peers.trainer import loss_of, train
from benchmarks.peers.wire import Gate, Job, job, weights_dtype

LINEAR = ["q_proj", "v_proj", "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main(given: Job) -> None:
    """As its training script does: load, put adapters on the trunk, mask "_" and train; it never trains in full."""
    gate = Gate(given.device)
    gate.before_model()
    model = LlamaBiForMNTP.from_pretrained(
        given.folder, attn_implementation=given.attention, torch_dtype=weights_dtype(given)
    ).to(given.device)
    loss = loss_of(model, given)
    if given.tune == "lora":
        adapters = LoraConfig(
            r=given.lora_r,
            lora_alpha=given.lora_alpha,
            target_modules=LINEAR,
            lora_dropout=given.lora_dropout,
            bias="none",
            task_type=None,
        )
        model.set_model_for_peft(get_peft_model(model.get_model_for_peft(), adapters))
    # The file that newer tokenizers wrote is read, the settings beside it are not: their class has another name now.
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=f"{given.folder}/tokenizer.json",
        pad_token="</s>",
        model_input_names=["input_ids", "attention_mask"],
    )
    tokenizer.mask_token = "_"
    train(model, tokenizer, given, gate, loss=loss)


if __name__ == "__main__":
    main(job())
