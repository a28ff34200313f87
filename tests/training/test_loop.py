"""The loop: what a stage gives does not depend on memory, interruption or the caller's generators."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bothways import MNTP, Encoder, SimCSE, Supervised, convert, mntp, simcse, supervised
from bothways.data import Example
from bothways.errors import TrainingError
from bothways.stages.mntp import _Task
from bothways.training import checkpoint
from bothways.training import run as runs
from bothways.training.run import Done, Run
from bothways.training.settings import Training

STAGES: dict[str, tuple[Callable, Training]] = {
    "mntp": (mntp, MNTP(steps=4, batch_size=3, block_size=24, lora_dropout=0.2, save_every=2)),
    "simcse": (simcse, SimCSE(steps=4, batch_size=5, max_length=16, save_every=2, tune="full")),
    "supervised": (supervised, Supervised(steps=4, batch_size=5, max_length=16, dropout=0.3, save_every=2)),
}
SMALL = {"learning_rate": 1e-3, "precision": "fp32", "held_out_items": 5}


def items(stage: str, texts: list[str]) -> list:
    if stage != "supervised":
        return texts[:60]
    return [Example(text[:20], text, (texts[i - 7],)) for i, text in enumerate(texts[:60])]


def weights(encoder: Encoder) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in encoder.state_dict().items()}


def same(one: Encoder, other: Encoder) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(one).values(), weights(other).values(), strict=True))


def run(stage: str, folder: Path, texts: list[str], changes: dict | None = None, **options: object) -> Encoder:
    verb, settings = STAGES[stage]
    encoder = convert(folder, dtype="float32", device="cpu")
    settings = replace(settings, **{**SMALL, **(changes or {})})
    return verb(encoder, items(stage, texts), settings, show_progress=False, **options)


@pytest.mark.parametrize("stage", STAGES)
def test_resumed_equals_uninterrupted(
    stage: str, tiny_llama_folder: Path, real_texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CPU, float32, the same threads, dropout on: every weight is bit for bit the same."""
    whole = run(stage, tiny_llama_folder, real_texts)
    real_step = Run.step

    def die_after_three(self: Run, step: int) -> Done:
        if step == 3:
            raise RuntimeError("power cut")
        return real_step(self, step)

    monkeypatch.setattr(Run, "step", die_after_three)
    with pytest.raises(RuntimeError, match="power cut"):
        run(stage, tiny_llama_folder, real_texts, checkpoint_dir=tmp_path)
    monkeypatch.setattr(Run, "step", real_step)
    assert [path.name for path in checkpoint.found(tmp_path)] == ["step-00000002.pt"]
    torch.rand(17), random.random(), np.random.rand()
    resumed = run(stage, tiny_llama_folder, real_texts, checkpoint_dir=tmp_path, resume=True)
    assert same(whole, resumed)
    one, other = (encoder.record.stages[-1] for encoder in (whole, resumed))
    assert (one["loss"], one["held_out"]) == (other["loss"], other["held_out"])
    untrained = convert(tiny_llama_folder, dtype="float32", device="cpu")
    assert not same(whole, untrained)


def test_resume_refuses_other_settings_other_data_and_other_weights(
    tiny_llama_folder: Path, real_texts: list[str], tmp_path: Path
) -> None:
    run("mntp", tiny_llama_folder, real_texts, checkpoint_dir=tmp_path)
    again = {"checkpoint_dir": tmp_path, "resume": True}
    with pytest.raises(TrainingError, match=r"mask_rate was 0\.2 and is now 0\.3"):
        run("mntp", tiny_llama_folder, real_texts, {"mask_rate": 0.3}, **again)
    with pytest.raises(TrainingError, match="data fingerprint was"):
        run("mntp", tiny_llama_folder, real_texts[1:], **again)
    with pytest.raises(TrainingError, match="stage was 'mntp' and is now 'simcse'"):
        run("simcse", tiny_llama_folder, real_texts, **again)
    encoder = convert(tiny_llama_folder, device="cpu")
    with torch.no_grad():
        encoder.model.norm.weight += 0.5
    with pytest.raises(TrainingError, match="weights was"):
        mntp(encoder, real_texts[:60], replace(STAGES["mntp"][1], **SMALL), show_progress=False, **again)


@pytest.mark.parametrize("block_size", [24, None])
def test_accumulation_never_changes_the_gradient(
    tiny_llama_folder: Path, real_texts: list[str], block_size: int | None
) -> None:
    """Float32, no dropout, 20 steps: a batch of 4 rows at once, and one row at a time."""
    changes = {"lora_dropout": 0.0, "batch_size": 4, "steps": 20, "block_size": block_size, "max_grad_norm": 0.0}
    found = [
        weights(run("mntp", tiny_llama_folder, real_texts, {**changes, "tokens_per_batch": tokens}))
        for tokens in (8192, 1)
    ]
    for name, at_once in found[0].items():
        assert torch.allclose(at_once, found[1][name], rtol=0, atol=1e-5), name


def test_everything_is_as_it_was_but_for_the_weights(tiny_llama_folder: Path, real_texts: list[str]) -> None:
    encoder = convert(tiny_llama_folder, dtype="bfloat16", device="cpu")
    encoder.model.norm.weight.requires_grad_(False)
    grads = {name: weight.requires_grad for name, weight in encoder.named_parameters()}
    dtypes = {name: weight.dtype for name, weight in encoder.named_parameters()}
    generators = np.random.get_state()[1].tolist(), torch.get_rng_state()
    settings = replace(STAGES["simcse"][1], **{**SMALL, "precision": "bf16"})
    before = weights(encoder)
    assert simcse(encoder, real_texts[:60], settings, show_progress=False) is encoder
    assert not encoder.training
    assert {name: weight.requires_grad for name, weight in encoder.named_parameters()} == grads
    assert {name: weight.dtype for name, weight in encoder.named_parameters()} == dtypes
    assert list(weights(encoder)) == list(before)
    assert all(layer.self_attn.attention_dropout == 0.0 for layer in encoder.model.layers)
    assert all(weight.grad is None for weight in encoder.parameters())
    # Python's own generator is not looked at here: beartype draws from it whenever it checks a list.
    assert np.random.get_state()[1].tolist() == generators[0]
    assert torch.equal(torch.get_rng_state(), generators[1])
    assert encoder.adapter is None
    stage = encoder.record.stages[-1]
    assert (stage["stage"], stage["settings"]["precision"]) == ("simcse", "bfloat16")
    assert stage["data"]["items"] == 55
    assert list(stage["held_out"]) == ["0", "4"]


def test_ctrl_c_writes_a_checkpoint_and_goes_on_to_the_caller(
    tiny_llama_folder: Path, real_texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_step = Run.step

    def interrupted(self: Run, step: int) -> Done:
        if step == 0:
            signal.raise_signal(signal.SIGINT)
        return real_step(self, step)

    monkeypatch.setattr(Run, "step", interrupted)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run("mntp", tiny_llama_folder, real_texts, {"held_out_items": 0}, checkpoint_dir=tmp_path)
    assert [path.name for path in checkpoint.found(tmp_path)] == ["step-00000001.pt"]
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.setattr(Run, "step", real_step)
    alone = {"held_out_items": 0}
    resumed = run("mntp", tiny_llama_folder, real_texts, alone, checkpoint_dir=tmp_path, resume=True)
    assert same(resumed, run("mntp", tiny_llama_folder, real_texts, alone))
    assert resumed.record.stages[-1]["held_out"] == {}


def test_a_loss_that_is_not_finite_stops_the_stage(
    tiny_llama_folder: Path, real_texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = _Task.parts

    def parts(self: _Task, batch: object, place: object, cut: object) -> object:
        for part in real(self, batch, place, cut):
            yield replace(part, loss=part.loss * (float("nan") if batch.step == 2 else 1.0))

    monkeypatch.setattr(_Task, "parts", parts)
    with pytest.raises(TrainingError, match=r"mntp: the loss of step 3 is not finite \(loss nan\)") as caught:
        run("mntp", tiny_llama_folder, real_texts, checkpoint_dir=tmp_path)
    assert "learning_rate (now 0.001)" in str(caught.value)
    assert str(caught.value).endswith(f"go on from {tmp_path}/step-00000002.pt with --resume.")


def test_an_error_leaves_a_whole_encoder(
    tiny_llama_folder: Path, real_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = convert(tiny_llama_folder, dtype="float32", device="cpu")
    names = list(weights(encoder))

    def broken(self: _Task, batch: object, place: object, cut: object) -> object:
        raise RuntimeError("broken batch")

    monkeypatch.setattr(_Task, "parts", broken)
    with pytest.raises(RuntimeError, match="broken batch"):
        mntp(encoder, real_texts[:60], replace(STAGES["mntp"][1], **SMALL), show_progress=False)
    assert list(weights(encoder)) == names
    assert encoder.record.stages == () or encoder.record.stages[-1]["stage"] != "mntp"
    assert np.isfinite(encoder.encode(["a text"])).all()


def test_progress_is_plain_lines_where_there_is_no_terminal(
    tiny_llama_folder: Path, real_texts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = convert(tiny_llama_folder, dtype="float32", device="cpu")
    mntp(encoder, real_texts[:60], replace(STAGES["mntp"][1], **SMALL))
    out, err = capsys.readouterr()
    assert out == ""
    assert "mntp: step 4/4  loss " in err
    assert 'mask token "_" (the paper\'s choice)' in err
    assert "held out after step 0: loss " in err


def test_a_signal_in_the_last_measurement_stops_too_and_nothing_is_lost(
    tiny_llama_folder: Path, real_texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = _Task.scores

    def interrupted(self: _Task, cut: object) -> dict[str, float]:
        if len(checkpoint.found(tmp_path)) == 2:
            signal.raise_signal(signal.SIGINT)
        return real(self, cut)

    with monkeypatch.context() as patch:
        patch.setattr(_Task, "scores", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run("mntp", tiny_llama_folder, real_texts, checkpoint_dir=tmp_path)
    assert checkpoint.found(tmp_path)[-1].name == "step-00000004.pt"
    resumed = run("mntp", tiny_llama_folder, real_texts, checkpoint_dir=tmp_path, resume=True)
    assert same(resumed, run("mntp", tiny_llama_folder, real_texts))


def test_processes_that_would_train_something_else_are_refused(
    tiny_llama_folder: Path, real_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another process says stands in for it here; real ones are in test_processes."""
    real = runs.gathered
    monkeypatch.setattr(
        runs,
        "gathered",
        lambda place, value: [value, {**value, "weights": "others"}] if isinstance(value, dict) else real(place, value),
    )
    with pytest.raises(TrainingError, match="process 1 differs from process 0: weights is 'others' there and"):
        run("mntp", tiny_llama_folder, real_texts)
