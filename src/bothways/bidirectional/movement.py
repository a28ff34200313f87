"""What moves when something is perturbed: a batch with one touched position per row, noise on it, and who felt it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Cache, PreTrainedConfig, PreTrainedModel

from bothways.bidirectional.certificate import Reach
from bothways.bidirectional.directions import called
from bothways.bidirectional.nested import Path, rebuilt, tensors

# Primes that no model has as its width, so that an axis of this length is the axis of the tokens.
TOKENS = 11
PADDING = 2
POSITIONS = (0, TOKENS // 2, TOKENS - 1)
"""Row r is perturbed at POSITIONS[r]; the row after these at its padding, and the last row not at all."""
ROWS = len(POSITIONS) + 2
STRENGTH = 2.0
"""Size of a perturbation, relative to the root mean square of what is perturbed."""
DRAWS = 3
"""Perturbations tried before a position counts as unseen."""
ROUNDING = 1e-6
"""Relative change that float32 arithmetic alone may cause, as where experts are handed other numbers of tokens."""
NOISE_MARGIN = 8.0
"""A position has moved if it moved this many times as far as the row whose own input is untouched."""


@dataclass(frozen=True)
class Batch:
    """Right-padded token ids, the same with other ids where `touched`, and the attention mask; `touched` on the CPU."""

    ids: Tensor
    other_ids: Tensor
    mask: Tensor
    touched: Tensor

    @property
    def tokens(self) -> int:
        return self.ids.shape[1]


def make_batch(model: PreTrainedModel, padding: int) -> Batch:
    """The same random texts whatever the padding, without special tokens."""
    embeddings = getattr(model.get_input_embeddings(), "weight", None)
    if embeddings is None:
        raise TypeError("it does not read the token ids of one vocabulary")
    special = _special_ids(model.config)
    plain = torch.tensor([token for token in range(embeddings.shape[0]) if token not in special])
    if len(plain) < 2:
        raise TypeError("its vocabulary has fewer than two ordinary tokens")
    draws = torch.randint(len(plain), (2, ROWS, TOKENS + PADDING), generator=torch.Generator().manual_seed(0))
    # The second draw is made to differ from the first everywhere.
    ids, other = plain[draws[0]], plain[(draws[0] + 1 + draws[1] % (len(plain) - 1)) % len(plain)]
    touched = torch.zeros(ROWS, TOKENS + PADDING, dtype=torch.bool)
    touched[range(len(POSITIONS)), POSITIONS] = True
    touched[len(POSITIONS), TOKENS:] = True
    mask = (torch.arange(TOKENS + PADDING) < TOKENS).long().expand(ROWS, -1)
    length = TOKENS + padding
    ids, other, mask = (
        part[:, :length].to(embeddings.device) for part in (ids, torch.where(touched, other, ids), mask)
    )
    return Batch(ids, other, mask, touched[:, :length])


def _special_ids(config: PreTrainedConfig) -> set[int]:
    found: set[int] = set()
    for part in (config, config.get_text_config()):
        for key, value in vars(part).items():
            if key.endswith(("token_id", "token_ids", "token_index")):
                found.update(item for item in (value if isinstance(value, list) else [value]) if isinstance(item, int))
    return found


def by_token(output: Any, batch: Batch) -> Tensor | None:
    """The first tensor of an output with an axis for the tokens, as (rows, tokens, features)."""
    items = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else [output]
    for item in items:
        axis = _states_axis(item, batch)
        if axis is not None:
            found: Tensor = item.movedim(axis, 1).flatten(2)
            return found
    return None


def token_axis(item: Any, batch: Batch) -> int | None:
    """Which axis of a tensor of this batch is that of the tokens, None if none or not one alone is."""
    if not isinstance(item, Tensor) or item.ndim < 2 or len(item) != len(batch.ids):
        return None
    axes = [axis for axis in range(1, item.ndim) if item.shape[axis] == batch.tokens]
    # Two such axes make a mask or a matrix of attention weights; a fourth and last one makes a mask over keys.
    return axes[0] if len(axes) == 1 and axes[0] != 3 else None


def _states_axis(item: Any, batch: Batch) -> int | None:
    """`token_axis` of what may be hidden states; ids and masks are not."""
    states = isinstance(item, Tensor) and item.is_floating_point() and item.ndim > 2
    return token_axis(item, batch) if states else None


def run(model: PreTrainedModel, ids: Tensor, batch: Batch) -> Tensor:
    """Last hidden states (rows, tokens, dim) of the model without its head."""
    body = body_of(model)
    # A cache would remember what the second call of a sub-module was given.
    cache = {"use_cache": False} if "use_cache" in inspect.signature(type(body).forward).parameters else {}
    hidden = by_token(body(input_ids=ids, attention_mask=batch.mask, **cache), batch)
    if hidden is None:
        raise TypeError(f"{type(body).__name__} returns no hidden states of shape (batch, tokens, dim)")
    return hidden


def body_of(model: nn.Module) -> nn.Module:
    """The model without its head."""
    return getattr(model, "base_model", model)


def felt_by(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], clean: Tensor, batch: Batch
) -> Tensor | None:
    """Which real, untouched outputs move, (rows, TOKENS); None if there is nothing to perturb.

    What moves nowhere by more than rounding may explain does not mix; of what mixes, the faintest movement counts.
    """
    mixes = felt = torch.zeros_like(batch.touched[:, :TOKENS])
    for draw in range(DRAWS):
        perturbed = _Perturbed(batch, torch.Generator().manual_seed(draw))
        other_args, other_kwargs = perturbed(args), perturbed(kwargs)
        if perturbed.count == 0:
            return None
        changed = by_token(called(module, other_args, other_kwargs), batch)
        if changed is None:
            return None
        mixes = mixes | moved(clean, changed, batch)
        felt = felt | moved(clean, changed, batch, floor=torch.finfo(clean.dtype).eps / 16)
        if not mixes.any() or reach(felt).direction() == "bidirectional":
            break
    return felt if mixes.any() else mixes


def balance(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], batch: Batch) -> float | None:
    """Of what a flat query takes from both sides of it, the share that it takes from the left; 0.5 is even.

    All states are zero, so that no content speaks and only what the position adds decides; then one and the same
    content is put on all tokens to the left of the middle one (row 0), or on all to its right (row 1), equally many.
    None where such a query takes nothing, as behind a gate that zero closes.
    """
    middle = TOKENS // 2
    sides = torch.zeros(ROWS, batch.tokens, dtype=torch.bool)
    sides[0, :middle], sides[1, middle + 1 : TOKENS] = True, True
    output = by_token(called(module, _flat(args, sides, batch), _flat(kwargs, sides, batch)), batch)
    if output is None:
        return None
    left, right = ((output[row, middle] - output[-1, middle]).float().norm().item() for row in (0, 1))
    return left / (left + right) if 0 < left + right < float("inf") else None


def _flat(item: Any, sides: Tensor, batch: Batch) -> Any:
    def leaf(_: Path, part: Any) -> Any:
        axis = _states_axis(part, batch)
        if axis is None:
            return None if isinstance(part, Cache) else part
        # The content may differ along every axis but those of the batch and the tokens.
        shape = [1 if place in (0, axis) else length for place, length in enumerate(part.shape)]
        content = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(part)
        places = [length if place in (0, axis) else 1 for place, length in enumerate(part.shape)]
        return torch.where(sides.view(places).to(part.device), content, torch.zeros_like(part))

    return rebuilt(item, leaf)


class SoftmaxOverTokens(TorchDispatchMode):
    """Notices whether anything that is computed under it normalises over the tokens, as attention does."""

    # flex_attention is one operator of a higher order, and passes through.
    supports_higher_order_operators = True

    def __init__(self, batch: Batch) -> None:
        super().__init__()
        self.tokens, self.seen = batch.tokens, False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        name = str(func)
        if "attention" in name or "attn" in name:
            self.seen = True
        elif "softmax" in name and isinstance(output, Tensor):
            # An attention sink adds a column.
            self.seen |= output.ndim > 2 and output.shape[-1] in (self.tokens, self.tokens + 1)
        return output


def perturbed(item: Any, batch: Batch) -> Any:
    """A copy of an output with noise on the touched positions."""
    return _Perturbed(batch, torch.Generator().manual_seed(0))(item)


def states_in(item: Any, batch: Batch) -> dict[Path, Tensor]:
    """What may be hidden states in nested arguments, each as (rows, tokens, features)."""
    axes = ((path, part, _states_axis(part, batch)) for path, part in tensors(item))
    return {path: part.movedim(axis, 1).flatten(2) for path, part, axis in axes if axis is not None}


class _Perturbed:
    """Copies arguments, with noise on the touched positions of every float tensor that has an axis for the tokens."""

    def __init__(self, batch: Batch, generator: torch.Generator) -> None:
        self.batch, self.generator, self.count = batch, generator, 0

    def __call__(self, item: Any) -> Any:
        return rebuilt(item, self._leaf)

    def _leaf(self, _: Path, item: Any) -> Any:
        axis = _states_axis(item, self.batch)
        if axis is None:
            return None if isinstance(item, Cache) else item  # a cache has seen the clean text
        self.count += 1
        size = item.float().square().mean().sqrt().clamp(min=1e-3)
        noise = torch.randn(item.shape, generator=self.generator).to(item.device)
        shape = [length if place in (0, axis) else 1 for place, length in enumerate(item.shape)]
        touched = self.batch.touched.view(shape).to(item.device)
        return torch.where(touched, item + (STRENGTH * size * noise).to(item.dtype), item)


def moved(clean: Tensor, changed: Tensor, batch: Batch, floor: float = ROUNDING) -> Tensor:
    """Which real, untouched positions differ by more than chance, as the untouched row shows it; (rows, TOKENS)."""
    change = relative_change(clean, changed)
    floor = max(torch.finfo(clean.dtype).eps / 16, floor)
    return (change > torch.clamp(NOISE_MARGIN * change[-1].max(), min=floor)).cpu() & ~batch.touched[:, :TOKENS]


def relative_change(clean: Tensor, changed: Tensor) -> Tensor:
    """Length of the difference at each real position, relative to the clean vector's; (rows, TOKENS)."""
    clean, changed = clean[:, :TOKENS].float(), changed[:, :TOKENS].float()
    size = clean.norm(dim=-1)
    size = torch.maximum(size, 1e-3 * size.mean()).clamp(min=torch.finfo(torch.float32).tiny)
    change: Tensor = (changed - clean).norm(dim=-1) / size
    return change.nan_to_num(nan=torch.inf, posinf=torch.inf)


def reach(felt: Tensor) -> Reach:
    """How far the single perturbed positions are felt among the real tokens; `felt` is (rows, TOKENS)."""
    pairs = {
        (position, token): bool(felt[row, token])
        for row, position in enumerate(POSITIONS)
        for token in range(TOKENS)
        if token != position
    }
    left = max((token - position for (position, token), seen in pairs.items() if seen), default=0)
    right = max((position - token for (position, token), seen in pairs.items() if seen), default=0)
    near = [seen for (position, token), seen in pairs.items() if -right <= token - position <= left]
    return Reach(max(left, 0), max(right, 0), all(near))
