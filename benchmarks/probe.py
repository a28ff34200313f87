"""What proving costs: `make_bidirectional` on a decoder of 1.2B parameters (Llama-3.2-1B's shape, random weights)."""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

from benchmarks.frame import Findings

SHAPE: dict[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
}
REPEATS = 3


def arguments(parser: argparse.ArgumentParser) -> None:
    """Where to measure."""
    parser.add_argument("--device", default="cpu", help="device to measure on")


def measure(options: argparse.Namespace) -> Findings:
    """Seconds of the whole conversion, probe included, beside one forward pass of 512 tokens."""
    from transformers import LlamaConfig, LlamaModel

    from bothways import make_bidirectional

    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        model = LlamaModel._from_config(LlamaConfig(**SHAPE), dtype=dtype, attn_implementation="sdpa")
        model = model.to(options.device).eval()
        for repeat in range(REPEATS):
            forward = _seconds(lambda model=model: _forward(model))
            model.config.is_causal = True
            begun = time.perf_counter()
            certificate = make_bidirectional(model)
            seconds = time.perf_counter() - begun
            rows.append(
                {
                    "dtype": str(dtype).removeprefix("torch."),
                    "repeat": repeat,
                    "parameters": sum(weight.numel() for weight in model.parameters()),
                    "direction": certificate.direction,
                    "seconds": round(seconds, 2),
                    "probe seconds": certificate.seconds,
                    "forward pass of 512 tokens, seconds": round(forward, 2),
                }
            )
    found = {kind: [row["seconds"] for row in rows if row["dtype"] == kind] for kind in ("float32", "bfloat16")}
    return Findings(rows, observed={f"seconds, {kind}, median": statistics.median(v) for kind, v in found.items()})


@torch.no_grad()
def _forward(model: Any) -> None:
    ids = torch.randint(SHAPE["vocab_size"], (1, 512), device=model.device)
    float(model(input_ids=ids)[0].sum())


def _seconds(call: Any) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun
