"""Adapters of random numbers, as peft saves them: `from lora_folders import ...`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, AutoModelForCausalLM

from bothways.lora import peft_wraps

EVERY = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make_adapter(
    base: Path, folder: Path, *, seed: int, says: str | None = None, head: bool = False, **lora: Any
) -> Path:
    """A LoRA of random numbers on the trunk (or, `head`, on the model with its head) in `folder`."""
    torch.manual_seed(seed)
    model = (AutoModelForCausalLM if head else AutoModel).from_pretrained(base)
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": EVERY, "init_lora_weights": False, **lora})
    with peft_wraps():
        wrapper = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in wrapper.named_parameters():
            if "lora_" in name:
                parameter.mul_(2.0)
    wrapper.save_pretrained(folder)
    amend(folder / "adapter_config.json", base_model_name_or_path=says if says is not None else str(base))
    return folder


def amend(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**content, **changes}))
