"""Runs in the environment of llm2vec 0.2.3: makes stacks with the reference's own code, and its vectors of texts.

`python reference_worker.py FOLDER`, where FOLDER has `request.json` and a hub's cache in `hub/`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

ROOM = Path(sys.argv[1])
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(ROOM / "hub"), "TOKENIZERS_PARALLELISM": "false"}

import numpy as np
import torch

# peft looks for torch.distributed.tensor without importing it.
import torch.distributed.tensor
from llm2vec import LLM2Vec
from llm2vec import models as its
from peft import LoraConfig, get_peft_model

EVERY = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def with_adapter(model: Any, seed: int) -> Any:
    """As its training scripts put one on, with random numbers in place of trained ones."""
    torch.manual_seed(seed)
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.05, target_modules=EVERY, init_lora_weights=False)
    wrapper = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in wrapper.named_parameters():
            if "lora_" in name:
                parameter.mul_(2.0)
    return wrapper


def make(case: dict[str, Any]) -> None:
    """base -> MNTP by its MNTP class -> second adapter on the merged model by `LLM2Vec.save`, and merged as a whole."""
    out = ROOM / case["name"]
    masked = getattr(its, f"{case['family']}BiForMNTP").from_pretrained(case["base"])
    masked.set_model_for_peft(with_adapter(masked.get_model_for_peft(), seed=1))
    masked.save_peft_model(out / "mntp")
    tokenizer = its_tokenizer(case)
    tokenizer.save_pretrained(out / "mntp")
    # What its authors put beside the adapter by hand, without which it loads none of its own: see its hub folders.
    config = masked.config.to_dict() | {"_name_or_path": case["base"], "architectures": [f"{case['family']}EncoderModel"]}
    config["auto_map"] = {"AutoModel": f"modeling_{case['family'].lower()}_encoder.{case['family']}EncoderModel"}
    (out / "mntp" / "config.json").write_text(json.dumps(config))
    opened = LLM2Vec.from_pretrained(str(out / "mntp"), **case["settings"])
    opened.model = with_adapter(opened.model, seed=2)
    opened.save(str(out / "mntp-supervised"))
    opened.save(str(out / "whole"), merge_before_save=True)


def its_tokenizer(case: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(case["base"])


def encode(model: Any, texts: list[Any], batch_size: int) -> np.ndarray:
    """One way round the order in which it sorts texts: none of it may matter."""
    return model.encode(texts, batch_size=batch_size, show_progress_bar=False, device="cpu").numpy()


def main() -> None:
    torch.set_num_threads(1)
    request = json.loads((ROOM / "request.json").read_text())
    for case in request["cases"]:
        make(case)
        out, found = ROOM / case["name"], {}
        if case.get("open_qwen2"):
            # What flash attention does with it: nothing hides the future. Its other kernels get a causal mask.
            its.Qwen2BiModel._update_causal_mask = its.LlamaBiModel._update_causal_mask
        stacks = {
            "mntp": LLM2Vec.from_pretrained(str(out / "mntp")),
            "both": LLM2Vec.from_pretrained(str(out / "mntp"), peft_model_name_or_path=str(out / "mntp-supervised")),
            "whole": LLM2Vec.from_pretrained(str(out / "whole")),
        }
        for stack, model in stacks.items():
            if stack == "whole":
                # Saved as a whole it forgets whose templates it needs; the template of a base is its own business.
                model.model.config._name_or_path = case["base"]
            found |= {
                f"{stack}/alone": encode(model, request["texts"], 1),
                f"{stack}/padded": encode(model, request["texts"], 4),
                f"{stack}/instructed": encode(model, request["pairs"], 1),
            }
        np.savez(out / "vectors.npz", **found)


if __name__ == "__main__":
    main()
