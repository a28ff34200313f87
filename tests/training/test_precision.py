"""Working weights: float32 masters behind a faster format, tied weights tied, and everything as it was afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bothways.training.precision import WorkingWeights


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 5)
        self.frozen = nn.Linear(5, 5)
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.frozen.requires_grad_(False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.frozen(self.embedding(ids)))


@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_small_updates_are_kept_in_float32(own: torch.dtype, dtype: torch.dtype) -> None:
    model = Tied().to(own)
    before = model.embedding.weight.detach().clone()
    frozen = model.frozen.weight.detach().clone()
    weights = WorkingWeights(model, dtype)
    assert {weight.dtype for weight in model.parameters()} == {dtype}
    assert list(weights.masters) == ["embedding.weight"]
    assert weights.masters["embedding.weight"].dtype == torch.float32
    for _ in range(8):
        # Alone, each of these is lost when it is added to a bfloat16 weight of size 1.
        with torch.no_grad():
            weights.masters["embedding.weight"] += 1e-3
        weights.publish()
    assert model.head.weight is model.embedding.weight
    weights.restore()
    assert {weight.dtype for weight in model.parameters()} == {own}
    assert torch.equal(model.frozen.weight, frozen)
    moved = model.embedding.weight.float() - before.float()
    assert moved.mean().item() == pytest.approx(8e-3, abs=1e-6 if own == torch.float32 else 2e-3)


def test_gradients_of_parts_add_up_in_the_masters() -> None:
    model = Tied()
    weights = WorkingWeights(model, torch.bfloat16)
    for ids in ([[1, 2, 3]], [[2, 4, 4]]):
        model(torch.tensor(ids)).float().sum().backward()
        weights.collect()
    assert model.embedding.weight.grad is None
    found = weights.masters["embedding.weight"].grad
    assert found is not None
    plain = Tied()
    plain.load_state_dict({name: value.float() for name, value in model.state_dict().items()})
    plain(torch.tensor([[1, 2, 3], [2, 4, 4]])).sum().backward()
    expected = plain.embedding.weight.grad
    assert expected is not None
    assert torch.allclose(found, expected, atol=0.05)
