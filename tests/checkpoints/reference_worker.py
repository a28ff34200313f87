"""Runs in the environment of llm2vec 0.2.3: makes stacks with the reference's own code, and its vectors of texts.

`python reference_worker.py FOLDER`, where FOLDER has `request.json` and gets a hub's cache in `hub/`, to which
HF_HUB_CACHE points.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

# peft looks for torch.distributed.tensor without importing it.
import torch.distributed.tensor
import transformers
from llm2vec import LLM2Vec
from llm2vec import models as its
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers import models as tokenizer_models

ROOM = Path(sys.argv[1])
HUB = ROOM / "hub"
EVERY = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SHAPE = {
    "vocab_size": 600,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 1024,
    "initializer_range": 0.12,
}


def make_base(case: dict[str, Any], texts: list[str]) -> str:
    """A random decoder with a tokenizer, in the hub's cache or, under a name that begins with ".", beside it."""
    name = case["base"]
    folder = ROOM / name if name.startswith(".") else HUB / f"models--{name.replace('/', '--')}" / "snapshots" / "0"
    if not name.startswith("."):
        (folder.parents[1] / "refs").mkdir(parents=True)
        (folder.parents[1] / "refs" / "main").write_text("0")
    torch.manual_seed(0)
    marks = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    config = getattr(transformers, f"{case['family']}Config")(**SHAPE, **marks, **case.get("shape", {}))
    getattr(transformers, f"{case['family']}ForCausalLM")(config).save_pretrained(folder)
    begin, end, *others = case["marks"]
    tokenizer = Tokenizer(tokenizer_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=590, special_tokens=[begin, end, *others], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    if case["has_bos"]:
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, 0)])
    inputs = ["input_ids", "attention_mask"]
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=begin, eos_token=end, model_input_names=inputs
    )
    fast.save_pretrained(folder)
    return str(folder) if name.startswith(".") else name


def with_adapter(model: Any, seed: int) -> Any:
    """As its training scripts put one on, with random numbers in place of trained ones."""
    torch.manual_seed(seed)
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.05, target_modules=EVERY, init_lora_weights=False)
    return get_peft_model(model, config)


def make(case: dict[str, Any], base: str) -> None:
    """base -> MNTP by its MNTP class -> second adapter on the merged model by `LLM2Vec.save`, and merged as a whole."""
    out = ROOM / case["name"]
    masked = getattr(its, f"{case['family']}BiForMNTP").from_pretrained(base)
    masked.set_model_for_peft(with_adapter(masked.get_model_for_peft(), seed=1))
    masked.save_peft_model(out / "mntp")
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(out / "mntp")
    # Its authors put a config beside the adapter by hand: without one it cannot open what it saved.
    encoder = f"{case['family']}EncoderModel"
    config = masked.config.to_dict() | {"_name_or_path": base, "architectures": [encoder]}
    config["auto_map"] = {"AutoModel": f"modeling_{case['family'].lower()}_encoder.{encoder}"}
    (out / "mntp" / "config.json").write_text(json.dumps(config))
    opened = LLM2Vec.from_pretrained(str(out / "mntp"), **case["settings"])
    opened.model = with_adapter(opened.model, seed=2)
    opened.save(str(out / "mntp-supervised"))
    opened.save(str(out / "whole"), merge_before_save=True)


def encode(model: Any, texts: list[Any], batch_size: int) -> np.ndarray:
    found: np.ndarray = model.encode(texts, batch_size=batch_size, show_progress_bar=False, device="cpu").numpy()
    return found


def vectors(out: Path, case: dict[str, Any], request: dict[str, Any]) -> dict[str, np.ndarray]:
    mntp, second, whole = (str(out / name) for name in ("mntp", "mntp-supervised", "whole"))
    stacks = {
        "mntp": LLM2Vec.from_pretrained(mntp, **case["settings"]),
        "both": LLM2Vec.from_pretrained(mntp, peft_model_name_or_path=second),
        "whole": LLM2Vec.from_pretrained(whole),
    }
    found = {}
    for stack, model in stacks.items():
        found |= {
            f"{stack}/alone": encode(model, request["texts"], 1),
            f"{stack}/padded": encode(model, request["texts"], 4),
            f"{stack}/instructed": encode(model, request["pairs"], 1),
        }
    return found


def main() -> None:
    torch.set_num_threads(1)
    request = json.loads((ROOM / "request.json").read_text())
    causal = its.Qwen2BiModel._update_causal_mask
    for case in request["cases"]:
        base = make_base(case, request["corpus"])
        make(case, base)
        out = ROOM / case["name"]
        np.savez(out / "vectors.npz", **vectors(out, case, request))
        if case["family"] == "Qwen2":
            # What flash attention does with its Qwen2: nothing hides the future. Its other kernels get a causal mask.
            its.Qwen2BiModel._update_causal_mask = its.LlamaBiModel._update_causal_mask
            np.savez(out / "vectors-open.npz", **vectors(out, case, request))
            its.Qwen2BiModel._update_causal_mask = causal


if __name__ == "__main__":
    main()
