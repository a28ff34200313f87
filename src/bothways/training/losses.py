"""What each stage minimises: pure functions from hidden states or vectors to one number."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

ROWS_PER_CHUNK = 512
"""Rows of logits alive at once. On two CPU cores 256-1024 rows are equally fast and all of them twice as slow."""


def token_cross_entropy(
    hidden: Float[Tensor, "rows dim"],
    head: Float[Tensor, "vocab dim"],
    labels: Int[Tensor, " rows"],
    *,
    bias: Float[Tensor, " vocab"] | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    impl: str = "chunked",
) -> Float[Tensor, ""]:
    """Sum of the cross-entropies, in nats, of predicting `labels` from `hidden @ head.T * scale + bias`, in float32.

    The sum, not the mean: whoever calls knows how many tokens the global batch predicts. `impl="chunked"` never holds
    more than a few hundred rows of logits and makes the gradient in the forward pass; `impl="reference"` is the plain
    formula. `softcap` bounds logits by `softcap * tanh(logits / softcap)` (Gemma 2); `scale` multiplies them (Cohere, Granite).

    Raises ValueError if the rows of `hidden` and `labels` differ, or if `impl` is unknown.
    Source: chunking and the gradient in the forward pass as in Wijmans et al. 2024 (arXiv 2411.09009), sec. 4.
    """
    if hidden.shape[0] != labels.shape[0]:
        raise ValueError(f"token_cross_entropy: {hidden.shape[0]} rows of hidden states, but {labels.shape[0]} labels.")
    if impl == "reference":
        logits = _logits(hidden, head, bias, softcap, scale)
        return F.cross_entropy(logits, labels, reduction="sum")
    if impl != "chunked":
        raise ValueError(f'token_cross_entropy: unknown impl "{impl}". Use "chunked" or "reference".')
    loss: Tensor = _ChunkedCrossEntropy.apply(hidden, head, labels, bias, softcap, scale)
    return loss


def _logits(hidden: Tensor, head: Tensor, bias: Tensor | None, softcap: float | None, scale: float) -> Tensor:
    logits = F.linear(hidden, head, bias).float() * scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        labels: Tensor,
        bias: Tensor | None,
        softcap: float | None,
        scale: float,
    ) -> Tensor:
        wants_hidden, wants_head, _, wants_bias, *_ = ctx.needs_input_grad
        loss = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_head = torch.zeros_like(head, dtype=torch.float32) if wants_head else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and wants_bias else None
        for start in range(0, hidden.shape[0], ROWS_PER_CHUNK):
            rows = slice(start, start + ROWS_PER_CHUNK)
            chunk, label = hidden[rows], labels[rows, None]
            logits = _logits(chunk, head, bias, softcap, scale)
            log_z = logits.logsumexp(dim=1, keepdim=True)
            loss += (log_z - logits.gather(1, label)).sum()
            if grad_hidden is None and grad_head is None and grad_bias is None:
                continue
            slope = 1.0 if softcap is None else 1 - (logits / softcap) ** 2
            grad = logits.sub_(log_z).exp_()
            grad.scatter_add_(1, label, torch.full_like(label, -1, dtype=grad.dtype))
            grad = (grad * slope if softcap is not None else grad).to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = grad @ head
            if grad_head is not None:
                grad_head += (grad.T @ chunk).float()
            if grad_bias is not None:
                grad_bias += grad.sum(dim=0, dtype=torch.float32)
        ctx.scale, ctx.head_dtype = scale, head.dtype
        ctx.save_for_backward(grad_hidden, grad_head, grad_bias)
        return loss

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_head, grad_bias = ctx.saved_tensors
        factor = upstream[0] * ctx.scale

        def times(grad: Tensor | None, dtype: torch.dtype | None = None) -> Tensor | None:
            return None if grad is None else (grad * factor.to(grad.dtype)).to(dtype or grad.dtype)

        return times(grad_hidden), times(grad_head, ctx.head_dtype), None, times(grad_bias, ctx.head_dtype), None, None
