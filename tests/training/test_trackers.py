"""What trackers are told, read back from TensorBoard's own file; what is missing is said before anything starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bothways import MNTP, convert, mntp
from bothways.errors import ConfigError
from bothways.training import trackers

SETTINGS = MNTP(
    steps=4,
    batch_size=3,
    block_size=24,
    precision="fp32",
    warm_up=0.5,
    held_out_items=5,
    evaluate_every=2,
    trackers=("tensorboard",),
)


# The tracker writes the settings with yaml, and TensorBoard's file formats are generated code.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_has_every_step(tiny_llama_folder: Path, real_texts: list[str], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    encoder = convert(tiny_llama_folder, dtype="float32", device="cpu")
    folder = tmp_path / "1.checkpoints"
    mntp(encoder, real_texts[:60], SETTINGS, checkpoint_dir=folder, show_progress=False)
    (events,) = (tmp_path / "1.logs" / "bothways-mntp").glob("events.*")
    read = EventAccumulator(str(events)).Reload()
    rates = [(item.step, item.value) for item in read.Scalars("learning_rate")]
    assert rates == [(step + 1, pytest.approx(SETTINGS.rate(step))) for step in range(4)]
    losses = [item.value for item in read.Scalars("loss")]
    assert sum(losses) / 4 == pytest.approx(encoder.record.stages[-1]["loss"])
    assert all(item.value > 0 for name in ("gradient_norm", "tokens_per_second") for item in read.Scalars(name))
    held_out = {str(item.step): item.value for item in read.Scalars("held_out/loss")}
    expected = {step: scores["loss"] for step, scores in encoder.record.stages[-1]["held_out"].items()}
    assert held_out == {step: pytest.approx(loss) for step, loss in expected.items()}
    assert sorted(held_out) == ["0", "2", "4"]


def test_what_is_missing_is_said(
    tiny_llama_folder: Path, real_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = convert(tiny_llama_folder, dtype="float32", device="cpu")
    with pytest.raises(ConfigError, match="log_dir is missing"):
        mntp(encoder, real_texts[:60], SETTINGS)
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match='"tensorboard" is not installed: pip install tensorboard'):
        mntp(encoder, real_texts[:60], replace(SETTINGS, log_dir="logs"))
    with pytest.raises(ConfigError, match=r"trackers=\('tensorbord',\)\): expected some of \"tensorboard\""):
        MNTP(trackers=("tensorbord",))
