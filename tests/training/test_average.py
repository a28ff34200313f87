"""The average of the weights, against the plain formula."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from bothways import MNTP, convert, mntp
from bothways.training.average import Average
from bothways.training.run import Done, Run


def test_the_average_follows_the_formula_and_is_adopted() -> None:
    master = nn.Parameter(torch.tensor([1.0, -2.0, 4.0]))
    average = Average({"w": master}, decay=0.5)
    expected = master.detach().clone()
    for step in range(7):
        with torch.no_grad():
            master += step + 1
        average.follow(step)
        kept = min(0.5, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * master.detach()
    assert torch.allclose(average.values["w"], expected)
    average.adopt()
    assert torch.allclose(master.detach(), expected)


def test_a_stage_ends_with_the_average_and_resumes_it(
    tiny_llama_folder: Path, real_texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the last weights: the average of those after every step, also of a run that was interrupted."""
    settings = MNTP(
        steps=6,
        batch_size=3,
        block_size=24,
        precision="fp32",
        tune="full",
        ema_decay=0.9,
        save_every=2,
        learning_rate=1e-2,
    )
    real, seen = Run.step, []

    def step(self: Run, number: int) -> Done:
        done = real(self, number)
        seen.append({name: master.detach().clone() for name, master in self.share.masters.items()})
        if len(seen) == 10:
            raise RuntimeError("power cut")
        return done

    def run(**how: object) -> dict[str, torch.Tensor]:
        encoder = convert(tiny_llama_folder, dtype="float32", device="cpu")
        seen.append({name: weight.detach().clone() for name, weight in encoder.named_parameters()})
        mntp(encoder, real_texts[:60], settings, show_progress=False, **how)
        return dict(encoder.named_parameters())

    monkeypatch.setattr(Run, "step", step)
    whole = run()
    name = "model.norm.weight"
    expected = seen[0][name]
    for number, weights in enumerate(seen[1:]):
        kept = min(0.9, (1 + number) / (10 + number))
        expected = kept * expected + (1 - kept) * weights[name]
    assert torch.allclose(whole[name], expected, atol=1e-7)
    assert not torch.allclose(whole[name], seen[-1][name], atol=1e-7)
    with pytest.raises(RuntimeError, match="power cut"):
        run(checkpoint_dir=tmp_path)
    again = run(checkpoint_dir=tmp_path, resume=True)
    assert all(torch.equal(whole[name], weight) for name, weight in again.items())
