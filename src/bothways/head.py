"""The language-model head, apart from the trunk: what MNTP predicts tokens with."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from bothways.errors import ConversionError

ROWS_CHECKED = 5
TOLERANCE = 1e-3
"""Largest difference to the model's own logits, relative to the largest of them, that rounding may explain."""


class Head(nn.Module):
    """`softcap * tanh(scale * (hidden @ weight.T + bias) / softcap)`; without a softcap just the inside.

    `weight` is (vocab, dim); a tied head holds the very parameter of the input embedding.
    """

    def __init__(
        self,
        weight: nn.Parameter,
        bias: nn.Parameter | None = None,
        *,
        scale: float = 1.0,
        softcap: float | None = None,
        tied: bool = False,
    ) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self.scale, self.softcap, self.tied = scale, softcap, tied

    def forward(self, hidden: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows vocab"]:
        """Logits in the dtype of `hidden`."""
        logits = F.linear(hidden, self.weight, self.bias) * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def head_scaling(config: object) -> tuple[float, float | None]:
    """Scale and softcap of the logits, as the families of transformers name them in their configs."""
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    scale *= float(getattr(config, "lm_head_multiplier", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    return scale, None if softcap is None else float(softcap)


@torch.no_grad()
def head_of(model: PreTrainedModel) -> Head:
    """The head of a loaded causal language model, checked against the logits of the model itself.

    Raises ConversionError if the model computes its logits in a way that this head does not.
    """
    output: Any = model.get_output_embeddings()
    embedding: Any = model.get_input_embeddings()
    trunk = model.base_model
    if output is None or trunk is model:
        raise ConversionError(f"{type(model).__name__} has no language-model head. Pass a causal language model.")
    scale, softcap = head_scaling(model.config.get_text_config())
    tied = output.weight is embedding.weight
    head = Head(output.weight, getattr(output, "bias", None), scale=scale, softcap=softcap, tied=tied)
    ids = torch.arange(1, 1 + ROWS_CHECKED, device=output.weight.device)[None] % embedding.weight.shape[0]
    training = model.training
    model.eval()
    try:
        expected = model(input_ids=ids).logits.float()
        found = head(trunk(input_ids=ids).last_hidden_state).float()
    finally:
        model.train(training)
    difference, size = (expected - found).abs().max().item(), expected.abs().max().item()
    slack = TOLERANCE if output.weight.dtype == torch.float32 else 0.05
    if not difference <= slack * max(size, 1e-6):
        raise ConversionError(
            f"{type(model).__name__} computes its logits in a way that is not known here: they differ from "
            f"{scale:g} * (hidden @ weight.T) by {difference:.2e} where the largest is {size:.2e}. "
            "Convert with head=False (MNTP is then not possible), or report the architecture."
        )
    return head
