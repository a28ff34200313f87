"""Pre-train the decoder that is shipped with bothways: a Llama of 7.6M parameters and its own tokenizer.

    python scripts/pretrain_tiny.py --data DIR --out build/tiny --tokens 30e6
    python scripts/pretrain_tiny.py --data DIR --out build/tiny --tokens 300e6 --device cuda
    python scripts/pretrain_tiny.py --data DIR --out build/tiny --tokens 60e6 --resume

DIR holds the sources named in scripts/pretrain_sources.json, each checked by its SHA-256 before a token is read. The
text is public domain, CC0 or MIT/Apache and has no docstring and no pydoc topic in it: those belong to the demo.
A checkpoint is written every few minutes; --resume continues from the last one, also with a larger --tokens.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import math
import os
import platform
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bothways.training import losses

SOURCES = json.loads(Path(__file__).with_name("pretrain_sources.json").read_text())
HELD_OUT = 0.02
"""Share of each file, its tail, that is never trained on."""
VOCAB, WINDOW, WINDOWS_PER_STEP = 8192, 256, 32
SHAPE: dict[str, Any] = {
    "hidden_size": 320,
    "num_hidden_layers": 4,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "intermediate_size": 864,
    "max_position_embeddings": 512,
    "vocab_size": VOCAB,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
WARM_UP, COOL_DOWN = 0.02, 0.4
"""Shares of the run: the learning rate rises linearly, stays, and falls linearly to zero at the last step."""


def read_sources(folder: Path) -> tuple[list[str], list[str]]:
    """The paragraphs for training and those held out. Raises SystemExit naming the first file that is not as listed."""
    train, held_out = [], []
    for source in SOURCES["files"]:
        path = folder / source["file"]
        if not path.exists():
            raise SystemExit(
                f"{path} is missing: it is {source['path']} of {source['repository']} at {source['commit']}."
            )
        raw = gzip.decompress(path.read_bytes())
        found = hashlib.sha256(raw).hexdigest()
        if found != source["sha256"]:
            raise SystemExit(f"{path}: SHA-256 {found}, but pretrain_sources.json lists {source['sha256']}.")
        lines = [line.strip() for line in raw.decode("utf-8").splitlines() if line.strip()]
        cut = math.ceil(len(lines) * (1 - HELD_OUT))
        train.append("\n".join(lines[:cut]))
        held_out.append("\n".join(lines[cut:]))
    return train, held_out


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE with a leading space on the first word, digits one by one, <s> in front of every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((line for text in texts for line in text.split("\n")), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        padding_side="right",
        model_max_length=SHAPE["max_position_embeddings"],
    )


def tokenise(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    lines = [line + "\n" for text in texts for line in text.split("\n")]
    encoded = tokenizer.backend_tokenizer.encode_batch_fast(lines, add_special_tokens=False)
    return torch.tensor([i for line in encoded for i in line.ids], dtype=torch.int32)


def windows(ids: Tensor, seed: int) -> Iterator[Tensor]:
    """Endless int64 windows (WINDOW,), <s> first: every epoch cuts at another offset and has an order of its own."""
    epoch, size = 0, WINDOW - 1
    while True:
        rng = random.Random(f"{seed}/{epoch}")
        offset = rng.randrange(size)
        starts = list(range(offset, len(ids) - size, size))
        rng.shuffle(starts)
        for start in starts:
            window = torch.full((WINDOW,), SHAPE["bos_token_id"])
            window[1:] = ids[start : start + size]
            yield window
        epoch += 1


def summed_loss(model: LlamaForCausalLM, rows: Tensor) -> Tensor:
    hidden = model.model(rows[:, :-1]).last_hidden_state
    return losses.token_cross_entropy(hidden.flatten(0, 1), model.lm_head.weight, rows[:, 1:].flatten())


@torch.no_grad()
def nats(model: LlamaForCausalLM, ids: Tensor, device: str, most: int | None = None) -> tuple[float, int]:
    """Sum of the losses over non-overlapping windows of `ids`, and the number of predicted tokens."""
    model.eval()
    size = WINDOW - 1
    cut = ids[: len(ids) // size * size].view(-1, size).long()[:most]
    rows = torch.cat([torch.full((len(cut), 1), SHAPE["bos_token_id"]), cut], dim=1).to(device)
    total = sum(float(summed_loss(model, chunk)) for chunk in rows.split(WINDOWS_PER_STEP))
    model.train()
    return total, cut.numel()


def rate(progress: float) -> float:
    return min(1.0, progress / WARM_UP, max(0.0, 1 - progress) / COOL_DOWN)


def make_optimisers(model: LlamaForCausalLM, lr: float) -> list[torch.optim.Optimizer]:
    """Muon on the matrices of the layers, AdamW on the embedding and the norms."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    inside = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in inside]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train(arguments: argparse.Namespace, ids: Tensor, held_out: Tensor) -> tuple[LlamaForCausalLM, dict[str, Any]]:
    torch.manual_seed(arguments.seed)
    # Master weights, optimiser and gradients stay in float32; a bfloat16 twin computes.
    master = LlamaForCausalLM(LlamaConfig(**SHAPE)).to(arguments.device)
    twin = LlamaForCausalLM(LlamaConfig(**SHAPE)).to(arguments.device, torch.bfloat16)
    twin.train()
    optimisers = make_optimisers(master, arguments.lr)
    steps = math.ceil(arguments.tokens / (WINDOW * WINDOWS_PER_STEP))
    done, spent, checkpoint = 0, 0.0, arguments.out / "checkpoint.pt"
    if arguments.resume and checkpoint.exists():
        state = torch.load(checkpoint, map_location=arguments.device, weights_only=True)
        master.load_state_dict(state["model"])
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        done, spent = state["step"], state["seconds"]
    source = windows(ids, arguments.seed)
    for _ in range(done * WINDOWS_PER_STEP):
        next(source)
    begun = last_saved = time.monotonic()
    for step in range(done, steps):
        with torch.no_grad():
            for half, full in zip(twin.parameters(), master.parameters(), strict=True):
                half.copy_(full)
        rows = torch.stack([next(source) for _ in range(WINDOWS_PER_STEP)]).to(arguments.device)
        predicted = rows[:, 1:].numel()
        loss = summed_loss(twin, rows) / predicted
        loss.backward()
        for half, full in zip(twin.parameters(), master.parameters(), strict=True):
            full.grad = half.grad.float()
            half.grad = None
        torch.nn.utils.clip_grad_norm_(master.parameters(), 1.0)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = arguments.lr * rate((step + 1) / steps)
            optimiser.step()
        now = time.monotonic()
        if step % 10 == 0 or step + 1 == steps:
            print(f"step {step + 1}/{steps} loss {loss.item():.4f} seconds {spent + now - begun:.0f}", flush=True)
        if now - last_saved > 120 or step + 1 == steps:
            last_saved = now
            total, count = nats(twin, held_out, arguments.device, most=64)
            print(f"step {step + 1}/{steps} held-out {total / count:.4f} nats a token", flush=True)
            save_checkpoint(checkpoint, master, optimisers, step + 1, spent + now - begun)
    return master, {"steps": steps, "seconds": round(spent + time.monotonic() - begun)}


def save_checkpoint(
    path: Path, model: LlamaForCausalLM, optimisers: list[torch.optim.Optimizer], step: int, seconds: float
) -> None:
    state = {
        "model": model.state_dict(),
        "optimisers": [optimiser.state_dict() for optimiser in optimisers],
        "step": step,
        "seconds": seconds,
    }
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def unigram_bits(train_ids: Tensor, held_out: Tensor) -> float:
    counts = torch.bincount(train_ids.long(), minlength=VOCAB).double() + 1
    return float(-(counts / counts.sum()).log2()[held_out.long()].sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=float, default=30e6)
    parser.add_argument("--lr", type=float, default=6e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    train_texts, held_out_texts = read_sources(arguments.data)
    tokenizer = train_tokenizer(train_texts)
    ids, held_out = tokenise(tokenizer, train_texts), tokenise(tokenizer, held_out_texts)
    held_out_bytes = sum(len(text.encode()) + 1 for text in held_out_texts)
    print(f"{len(ids):,} tokens to train on, {len(held_out):,} held out ({held_out_bytes:,} bytes)", flush=True)
    model, run = train(arguments, ids, held_out)

    torch.manual_seed(arguments.seed)
    random_model = LlamaForCausalLM(LlamaConfig(**SHAPE)).to(arguments.device)
    model = model.to(torch.bfloat16)
    bits = {}
    for name, candidate in {"trained": model, "random weights": random_model.to(torch.bfloat16)}.items():
        total, count = nats(candidate, held_out, arguments.device)
        bits[name] = total / math.log(2) / (held_out_bytes * count / len(held_out))
    bits["unigram"] = unigram_bits(ids, held_out) / held_out_bytes
    tokenizer.save_pretrained(arguments.out)
    model.save_pretrained(arguments.out)
    record = {
        "script": "scripts/pretrain_tiny.py",
        "sources": "scripts/pretrain_sources.json",
        "seed": arguments.seed,
        "lr": arguments.lr,
        "tokens": run["steps"] * WINDOW * WINDOWS_PER_STEP,
        "distinct_tokens": len(ids),
        **run,
        "held_out_bits_per_byte": {name: round(value, 4) for name, value in bits.items()},
        "device": arguments.device,
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }
    (arguments.out / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
