"""Cross-entropy of tokens, in chunks, against the plain formula (property)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bothways.training.losses import token_cross_entropy, tokens

ROWS, DIM, VOCAB = 301, 23, 97
VARIANTS = [
    {},
    {"scale": 0.3},
    {"softcap": 2.5},
    {"softcap": 2.5, "scale": 1.7, "bias": True},
    {"bias": True},
]


def problem(dtype: torch.dtype, *, bias: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    hidden = torch.randn(ROWS, DIM).to(dtype).requires_grad_()
    head = torch.randn(VOCAB, DIM).to(dtype).requires_grad_()
    shift = torch.randn(VOCAB).to(dtype).requires_grad_() if bias else None
    return hidden, head, torch.randint(0, VOCAB, (ROWS,)), shift


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunked_is_no_worse_than_the_plain_formula(variant: dict, dtype: torch.dtype) -> None:
    options = {name: value for name, value in variant.items() if name != "bias"}
    hidden, head, labels, bias = problem(dtype, bias="bias" in variant)
    leaves = [leaf for leaf in (hidden, head, bias) if leaf is not None]
    doubles = [leaf.detach().double().requires_grad_() for leaf in leaves]
    logits = F.linear(doubles[0], doubles[1], doubles[2] if bias is not None else None) * options.get("scale", 1.0)
    if "softcap" in options:
        logits = options["softcap"] * torch.tanh(logits / options["softcap"])
    exact = F.cross_entropy(logits, labels, reduction="sum")
    exact_grads = torch.autograd.grad(exact / 7, doubles)
    worse = {}
    for impl in ("chunked", "reference"):
        loss = token_cross_entropy(hidden, head, labels, bias=bias, impl=impl, **options)
        grads = torch.autograd.grad(loss / 7, leaves)
        worse[impl] = [float(((loss - exact).abs() / exact).detach())]
        worse[impl] += [float((a - b).abs().max() / b.abs().max()) for a, b in zip(grads, exact_grads, strict=True)]
    slack = 1e-6 if dtype == torch.float32 else 8e-3
    for fast, plain in zip(worse["chunked"], worse["reference"], strict=True):
        assert fast - plain <= slack, worse


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, head, labels, _ = problem(torch.float32, bias=False)
    whole = token_cross_entropy(hidden, head, labels)
    expected = torch.autograd.grad(whole, (hidden, head))
    monkeypatch.setattr(tokens, "rows_per_chunk", lambda head: 64)
    cut = token_cross_entropy(hidden, head, labels)
    assert torch.allclose(cut, whole, rtol=1e-6)
    for one, other in zip(torch.autograd.grad(cut, (hidden, head)), expected, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden, head, labels, _ = problem(torch.float32, bias=False)
    token_cross_entropy(hidden, head.detach(), labels).backward()
    assert hidden.grad is not None
    assert head.grad is None


def test_an_unknown_impl_is_named() -> None:
    hidden, head, labels, _ = problem(torch.float32, bias=False)
    with pytest.raises(ValueError, match='unknown impl "fast"'):
        token_cross_entropy(hidden, head, labels, impl="fast")
