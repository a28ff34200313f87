"""What a run chose by itself is stored, and a resumed run has the same or refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bothways import MNTP, Encoder, convert, hardware, mntp
from bothways.errors import TrainingError
from bothways.packing import Packing
from bothways.training import checkpoint, choices, kernel
from bothways.training.run import Done, Run

SETTINGS = MNTP(steps=5, batch_size=3, block_size=24, held_out_items=0, save_every=2, lora_dropout=0.3)


def run(folder: Path, texts: list[str], settings: MNTP = SETTINGS, **how: Any) -> Encoder:
    return mntp(convert(folder, dtype="float32", device="cpu"), texts[:60], settings, **how)


@pytest.fixture
def begun(
    tiny_llama_folder: Path, real_texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Encoder]:
    """The checkpoints of a run that ended after step 3, and what it would have given."""
    whole = run(tiny_llama_folder, real_texts, show_progress=False)
    real = Run.step

    def power_cut(self: Run, number: int) -> Done:
        if number == 3:
            raise RuntimeError("power cut")
        return real(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "step", power_cut)
        with pytest.raises(RuntimeError, match="power cut"):
            run(tiny_llama_folder, real_texts, checkpoint_dir=tmp_path, show_progress=False)
    return tmp_path, whole


def test_a_resumed_run_has_what_the_run_before_chose(
    begun: tuple[Path, Encoder],
    tiny_llama_folder: Path,
    real_texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Though the hardware would now choose otherwise: bit for bit, with dropout."""
    folder, whole = begun
    stored = torch.load(checkpoint.found(folder)[-1], weights_only=True)["choices"]
    recorded = whole.record.stages[-1]["settings"]
    assert {name: recorded[name] for name in stored} == stored
    assert stored["tokens_per_batch"] == hardware.CPU_TOKENS
    other = torch.float32 if stored["precision"] == "bfloat16" else torch.bfloat16
    real = hardware.choose_dtype

    def elsewhere(wish: str | torch.dtype, device: torch.device) -> hardware.Precision:
        """What a run is to choose; the decoder is opened in what it was."""
        return hardware.Precision(other, "another machine") if wish == SETTINGS.precision else real(wish, device)

    monkeypatch.setattr(hardware, "choose_dtype", elsewhere)
    monkeypatch.setattr(hardware, "CPU_TOKENS", 24)
    monkeypatch.setattr(hardware, "choose_training_attention", lambda own, *_: hardware.Kernel(own, "another machine"))
    again = run(tiny_llama_folder, real_texts, checkpoint_dir=folder, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    assert again.record.stages[-1]["settings"] == recorded
    assert "tokens at once (as the run began)" in capsys.readouterr().err


def test_what_can_no_longer_be_had_is_refused(
    begun: tuple[Path, Encoder], tiny_llama_folder: Path, real_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = begun
    how = {"checkpoint_dir": folder, "resume": True, "show_progress": False}
    with monkeypatch.context() as patch:
        patch.setattr(kernel, "_sees_the_same", lambda *_: False)
        with pytest.raises(TrainingError, match="this run began with eager attention, with which this model no longer"):
            run(tiny_llama_folder, real_texts, **how)

    class Unpacked:
        def __init__(self, model: object) -> None: ...

        def __enter__(self) -> Packing:
            return Packing(False, "padded rows of like length: it leaks")

        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr(choices, "packing", Unpacked)
    with pytest.raises(TrainingError, match="packed rows, which are no longer to be had: padded rows of like length"):
        run(tiny_llama_folder, real_texts, **how)


def test_another_number_of_processes_is_refused(
    begun: tuple[Path, Encoder], tiny_llama_folder: Path, real_texts: list[str]
) -> None:
    folder, _ = begun
    path = checkpoint.found(folder)[-1]
    state = torch.load(path, weights_only=True)
    torch.save({**state, "identity": {**state["identity"], "processes": 2}}, path)
    with pytest.raises(TrainingError, match="processes was 2 and is now 1"):
        run(tiny_llama_folder, real_texts, checkpoint_dir=folder, resume=True)


def test_what_no_number_depends_on_may_change(
    begun: tuple[Path, Encoder], tiny_llama_folder: Path, real_texts: list[str]
) -> None:
    folder, whole = begun
    changed = replace(SETTINGS, save_every=1, gradient_checkpointing="on")
    again = run(tiny_llama_folder, real_texts, changed, checkpoint_dir=folder, resume=True, show_progress=False)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
