"""Faults, provoked for real: a killed process, a full disk, a damaged checkpoint, memory that runs out."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parent))

from launching import fork, weights, worst
from worker import train

from bothways import MNTP, Encoder, convert, mntp
from bothways.errors import TrainingError
from bothways.stages.mntp import _Task
from bothways.training import checkpoint
from bothways.training.progress import Lines

SETTINGS = {"steps": 40, "batch_size": 4, "block_size": 24, "learning_rate": 1e-3, "lora_dropout": 0.2, "save_every": 3}
SMALL = MNTP(steps=6, batch_size=3, block_size=24, precision="fp32", held_out_items=0, save_every=2, tune="full")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_llama_folder: Path, real_texts: list[str]) -> dict[str, Any]:
    texts = tmp_path_factory.mktemp("texts") / "texts.txt"
    texts.write_text("\n".join(real_texts[:60]) + "\n", encoding="utf-8")
    return {"base": tiny_llama_folder, "texts": texts}


def encoder_of(folder: Path) -> Encoder:
    return convert(folder, dtype="float32", device="cpu")


def test_killed_at_ten_moments_and_resumed_equals_uninterrupted(base: dict[str, Any], tmp_path: Path) -> None:
    """SIGKILL while it starts, steps, writes a checkpoint (half, whole, named) and ends; dropout on, bit for bit."""
    job = {**base, "settings": SETTINGS, "resume": True, "out": tmp_path / "out.pt", "said": tmp_path / "said"}
    job["checkpoints"] = tmp_path / "checkpoints"
    fork(None).join(60)
    begun = time.monotonic()
    whole = fork({**job, "checkpoints": None, "out": tmp_path / "whole.pt"})
    whole.join(60)
    seconds = time.monotonic() - begun
    assert whole.exitcode == 0, job["said"].read_text()
    draw = random.Random(0)
    # Those that come in a checkpoint are first: on a slow machine a drawn one may leave no checkpoint to be written.
    for moment in ["named", "half", "whole", "named", *(draw.uniform(0.05, 0.9) * seconds for _ in range(5)), "end"]:
        placed = isinstance(moment, str)
        process = fork({**job, "kill": moment if placed else ""})
        process.join(60 if placed else moment)
        process.kill()
        process.join(60)
        # A moment that was drawn may come after a run that had little left to do.
        assert process.exitcode == -signal.SIGKILL or (not placed and process.exitcode == 0), moment
        # What was trained to its end is kept until the folder is written.
        assert moment != "end" or (job["checkpoints"] / "step-00000040.pt").exists()
    last = fork(job)
    last.join(60)
    assert last.exitcode == 0
    found, expected = weights(job), weights({"out": tmp_path / "whole.pt"})
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    resumed = [int(step) for step in re.findall(r"resumed after step (\d+)", job["said"].read_text())]
    assert resumed == sorted(resumed)
    assert resumed[-1] == 40
    assert len({step for step in resumed if step < 40}) > 1
    stages = [json.loads(torch.load(path, weights_only=True)["stage"]) for path in (job["out"], tmp_path / "whole.pt")]
    assert stages[0]["loss"] == stages[1]["loss"]
    assert len(list(job["checkpoints"].iterdir())) == 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that is full after a checkpoint and a half, but for a file that can be deleted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], capture_output=True)
    if made.returncode:
        pytest.skip("no file system may be mounted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_is_said_and_training_goes_on(
    base: dict[str, Any],
    small_disk: Path,
    tmp_path: Path,
    real_texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The checkpoints of steps 4 and 6 do not fit, that of step 8 does again; the one of step 2 stays whole."""
    settings = replace(SMALL, steps=9)
    mntp(encoder_of(base["base"]), real_texts[:60], settings, checkpoint_dir=tmp_path / "plain", show_progress=False)
    size = checkpoint.found(tmp_path / "plain")[0].stat().st_size
    free = os.statvfs(small_disk)
    (small_disk / "ballast").write_bytes(bytes(free.f_bavail * free.f_frsize - size * 3 // 2))
    said: list[str] = []
    real = Lines.say

    def say(self: Lines, message: str) -> None:
        real(self, message)
        said.append(message)
        if "no checkpoint of step 6" in message:
            state = checkpoint.load(small_disk / "checkpoints", state_identity(small_disk / "checkpoints"))
            assert state is not None
            assert state["step"] == 2
            (small_disk / "ballast").unlink()

    monkeypatch.setattr(Lines, "say", say)
    full = mntp(encoder_of(base["base"]), real_texts[:60], settings, checkpoint_dir=small_disk / "checkpoints")
    assert [line for line in said if "no checkpoint" in line] == [
        f"no checkpoint of step {step}: no space left in {small_disk / 'checkpoints'}; step-00000002.pt is still "
        "there. Training goes on, the next one is tried again"
        for step in (4, 6)
    ]
    assert [path.name for path in sorted((small_disk / "checkpoints").iterdir())] == [
        "step-00000008.pt",
        "step-00000009.pt",
    ]
    assert full.record.stages[-1]["stage"] == "mntp"


def test_a_file_that_may_not_grow_is_a_full_disk(
    base: dict[str, Any], tmp_path: Path, real_texts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The largest size of a file, as a quota has it; nothing is left of what was begun."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    encoder = encoder_of(base["base"])
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        mntp(encoder, real_texts[:60], SMALL, checkpoint_dir=tmp_path / "checkpoints")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = capsys.readouterr().err
    assert said.count("there is none yet. Training goes on") == 3
    assert not list((tmp_path / "checkpoints").iterdir())


def state_identity(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(checkpoint.found(folder)[-1], weights_only=True)["identity"]
    return found


@pytest.mark.parametrize("left", [0.5, 0.0])
def test_a_truncated_checkpoint_gives_way_to_the_one_before(
    base: dict[str, Any], tmp_path: Path, real_texts: list[str], capsys: pytest.CaptureFixture[str], left: float
) -> None:
    how = {"checkpoint_dir": tmp_path}
    whole = mntp(encoder_of(base["base"]), real_texts[:60], SMALL, **how)
    newest = checkpoint.found(tmp_path)[-1]
    assert newest.name == "step-00000006.pt"
    os.truncate(newest, int(newest.stat().st_size * left))
    again = mntp(encoder_of(base["base"]), real_texts[:60], SMALL, resume=True, **how)
    said = capsys.readouterr().err
    assert f"{newest} is damaged (" in said
    assert "resumed after step 4" in said
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    for path in checkpoint.found(tmp_path):
        os.truncate(path, 100)
    with pytest.raises(TrainingError, match=r"no checkpoint in .* can be read"):
        mntp(encoder_of(base["base"]), real_texts[:60], SMALL, resume=True, **how)


def test_memory_that_runs_out_halves_the_micro_batch(base: dict[str, Any], tmp_path: Path) -> None:
    """For real: the process may hold only so much more. The result is that of a run that had enough."""
    settings = {**SETTINGS, "steps": 2, "batch_size": 64, "block_size": 128, "lora_dropout": 0.0}
    settings["tokens_per_batch"] = 8192
    job = {**base, "settings": settings, "out": tmp_path / "out.pt", "said": tmp_path / "said"}
    job["texts"] = tmp_path / "texts.txt"
    job["texts"].write_text(base["texts"].read_text() * 8)
    process = fork({**job, "memory": 150})
    process.join(60)
    said = job["said"].read_text()
    assert process.exitcode == 0, said
    assert "out of memory: 4,096 tokens at once instead of 8,192, the same step again" in said
    assert worst(weights(job), dict(train(job).state_dict())) <= 1e-5
    stage = json.loads(torch.load(job["out"], weights_only=True)["stage"])
    assert stage["settings"]["tokens_per_batch"] <= 4096


def test_memory_that_never_suffices_is_said_after_all_was_tried(
    base: dict[str, Any], real_texts: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No real allocator refuses so exactly: here it does above so many tokens, and until there is checkpointing."""
    enough = {"tokens": 0, "checkpointing": True}
    real = _Task.parts

    def parts(self: _Task, batch: Any, place: Any, cut: Any) -> Any:
        for part in real(self, batch, place, cut):
            checkpointing = self.encoder.model.is_activation_checkpointing
            if part.tokens > enough["tokens"] or checkpointing < enough["checkpointing"]:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
            yield part

    monkeypatch.setattr(_Task, "parts", parts)
    encoder = encoder_of(base["base"])
    settings = replace(SMALL, batch_size=6, tokens_per_batch=100)
    with pytest.raises(TrainingError, match="out of memory with 24 tokens at once and gradient checkpointing; less"):
        mntp(encoder, real_texts[:60], settings)
    assert not encoder.model.is_activation_checkpointing
    with pytest.raises(TrainingError, match="out of memory with 24 tokens at once; less is not possible"):
        mntp(encoder, real_texts[:60], replace(settings, gradient_checkpointing="off"))
    enough["tokens"] = 24
    capsys.readouterr()
    mntp(encoder, real_texts[:60], settings)
    said = capsys.readouterr().err
    assert said.index("50 tokens at once instead of 100") < said.index("25 tokens at once instead of 50")
    assert "out of memory with 24 tokens at once, the longest row: gradient checkpointing from now on" in said
    assert encoder.record.stages[-1]["settings"]["gradient_checkpointing"] is True
