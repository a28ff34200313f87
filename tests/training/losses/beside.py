"""sentence-transformers' losses on given vectors, and cosines one pair at a time: `from beside import ...`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast


class Given(nn.Module):
    """A model whose output is what it is given, with what sentence-transformers' losses ask a model for."""

    max_seq_length = 8

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))

    def get_embedding_dimension(self) -> int:
        return self.dim

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["vectors"]}


def theirs(make: Callable[[Given], Any], columns: Sequence[Tensor], labels: Tensor | None = None) -> Any:
    """What the loss of sentence-transformers that `make` builds says of these vectors, one tensor per column."""
    return make(Given(columns[0].shape[1]))([{"vectors": column} for column in columns], labels)


def cosine(one: Tensor, other: Tensor) -> float:
    """Of two vectors, with Python's own sums."""
    a, b = one.tolist(), other.tolist()
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def leaf(rows: int, dim: int) -> Tensor:
    """Random vectors in float64 that want a gradient."""
    return torch.randn(rows, dim, dtype=torch.float64, requires_grad=True)


def assert_same_value_and_gradient(ours: Tensor, other: Tensor, leaves: Sequence[Tensor], within: float = 1e-9) -> None:
    """Both numbers, and what both send back to the leaves, agree to `within`."""
    torch.testing.assert_close(ours, other, rtol=within, atol=within)
    wanted = torch.autograd.grad(other, leaves)
    for one, two in zip(torch.autograd.grad(ours, leaves), wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=within, atol=within)
