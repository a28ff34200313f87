"""Cross-entropy of tokens from hidden states, without all logits at once."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

LOGITS_PER_CHUNK = {"cpu": 2**20, "other": 2**27}
"""Logits alive at once. On two CPU cores 128 rows of 8192 are 15 % faster than 512 (4 MB stay in the cache)."""
FEWEST_ROWS = 128
"""Below that, reading the head again for every chunk costs more than the cache saves."""


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
    formula. `softcap` bounds logits by `softcap * tanh(logits / softcap)` (Gemma 2); `scale` multiplies them (Cohere,
    Granite).

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


def rows_per_chunk(head: Float[Tensor, "vocab dim"]) -> int:
    """Rows of logits to compute at once with this head, on its device."""
    most = LOGITS_PER_CHUNK["cpu" if head.device.type == "cpu" else "other"]
    return max(FEWEST_ROWS, most // head.shape[0])


def _logits(hidden: Tensor, head: Tensor, bias: Tensor | None, softcap: float | None, scale: float) -> Tensor:
    logits = F.linear(hidden, head, bias).float()
    logits = logits if scale == 1 else logits * scale
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
        size = rows_per_chunk(head)
        for start in range(0, hidden.shape[0], size):
            rows = slice(start, start + size)
            chunk, label = hidden[rows], labels[rows, None]
            logits = _logits(chunk, head, bias, softcap, scale)
            slope = 1.0 if softcap is None else 1 - (logits / softcap) ** 2
            shifted = logits.sub_(logits.amax(dim=1, keepdim=True))
            of_label = shifted.gather(1, label)
            weights = shifted.exp_()
            total = weights.sum(dim=1, keepdim=True)
            loss += (total.log() - of_label).sum()
            if grad_hidden is None and grad_head is None and grad_bias is None:
                continue
            grad = weights.div_(total)
            grad.scatter_add_(1, label, torch.full_like(label, -1, dtype=grad.dtype))
            grad = (grad if softcap is None else grad * slope).to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = grad @ head
            if grad_head is not None and grad.dtype == torch.float32:
                grad_head.addmm_(grad.T, chunk)  # a product of its own would be as large as the head again
            elif grad_head is not None:
                grad_head += grad.T @ chunk
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
            # In place: a copy would be as large as the head again. Autograd refuses a second backward pass by itself.
            return None if grad is None else grad.mul_(factor.to(grad.dtype)).to(dtype or grad.dtype)

        return times(grad_hidden), times(grad_head, ctx.head_dtype), None, times(grad_bias, ctx.head_dtype), None, None
