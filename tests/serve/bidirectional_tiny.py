"""A tiny random decoder of another family, with the tokenizer of the tiny Llama."""

from __future__ import annotations

import sys
from pathlib import Path

from transformers import AutoTokenizer

sys.path.append(str(Path(__file__).resolve().parents[1] / "bidirectional"))


def save(name: str, tokenizer_of: Path, folder: Path) -> None:
    from tiny import tiny

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    tiny(name, "eager", head=True, vocab_size=len(tokenizer), max_position_embeddings=256).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
