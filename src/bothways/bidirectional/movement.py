"""What moves when something is perturbed: a batch with one touched position per row, noise on it, and who felt it."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from copy import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from bothways.bidirectional.certificate import Reach

# Primes that no model has as its width, so that an axis of this length is the axis of the tokens.
TOKENS = 11
PADDING = 6
POSITIONS = (0, TOKENS // 2, TOKENS - 1)
"""Row r is perturbed at POSITIONS[r]; the row after these at its padding, and the last row not at all."""
ROWS = len(POSITIONS) + 2
STRENGTH = 2.0
"""Size of a perturbation, relative to the root mean square of what is perturbed."""
DRAWS = 3
"""Perturbations tried before a position counts as unseen."""
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
    embeddings = cast(Tensor, model.get_input_embeddings().weight)
    special = _special_ids(model.config)
    plain = torch.tensor([token for token in range(embeddings.shape[0]) if token not in special])
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
        axis = _token_axis(item, batch)
        if axis is not None:
            found: Tensor = item.movedim(axis, 1).flatten(2)
            return found
    return None


def _token_axis(item: Any, batch: Batch) -> int | None:
    if not isinstance(item, Tensor) or not item.is_floating_point() or item.ndim < 3 or item.shape[0] != ROWS:
        return None
    axes = [axis for axis in range(1, item.ndim) if item.shape[axis] == batch.tokens]
    # Two such axes make a mask or a matrix of attention weights; a fourth and last one makes a mask over keys.
    return axes[0] if len(axes) == 1 and axes[0] != 3 else None


def felt_by(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], clean: Tensor, batch: Batch
) -> Tensor | None:
    """Which real, untouched outputs move, (rows, TOKENS); None if there is nothing to perturb."""
    felt = torch.zeros_like(batch.touched[:, :TOKENS])
    for draw in range(DRAWS):
        perturbed = _Perturbed(batch, torch.Generator().manual_seed(draw))
        other_args, other_kwargs = perturbed(args), perturbed(kwargs)
        if perturbed.count == 0:
            return None
        changed = by_token(module.forward(*other_args, **other_kwargs), batch)
        if changed is None:
            return None
        felt |= moved(clean, changed, batch)
        if not felt.any() or reach(felt).direction == "bidirectional":
            break
    return felt


class _Perturbed:
    """Copies arguments, with noise on the touched positions of every float tensor that has an axis for the tokens."""

    def __init__(self, batch: Batch, generator: torch.Generator) -> None:
        self.batch, self.generator, self.count = batch, generator, 0

    def __call__(self, item: Any) -> Any:
        if type(item) in (tuple, list):
            return type(item)(self(part) for part in item)
        if isinstance(item, MutableMapping):
            # Layers that share keys and values write them into a mapping they are given: the original stays clean.
            twin = copy(item)
            for key in item:
                twin[key] = self(item[key])
            return twin
        axis = _token_axis(item, self.batch)
        if axis is None:
            return item
        self.count += 1
        size = item.float().square().mean().sqrt().clamp(min=1e-3)
        noise = torch.randn(item.shape, generator=self.generator).to(item.device)
        shape = [length if place in (0, axis) else 1 for place, length in enumerate(item.shape)]
        touched = self.batch.touched.view(shape).to(item.device)
        return torch.where(touched, item + (STRENGTH * size * noise).to(item.dtype), item)


def moved(clean: Tensor, changed: Tensor, batch: Batch) -> Tensor:
    """Which real, untouched positions differ by more than chance, as the untouched row shows it; (rows, TOKENS)."""
    change = relative_change(clean, changed)
    floor = torch.finfo(clean.dtype).eps / 16
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
