"""Checkpoints: whole or not at all, the last two, and only for the run that wrote them."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from torch import nn

from bothways.errors import TrainingError
from bothways.training import checkpoint, sharded

IDENTITY = checkpoint.identity({"steps": 7, "schedule": "linear", "max_length": None}, data="d1")


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    (tmp_path / "step-00000002.partial").write_bytes(b"left by a process that was killed")
    for step in (3, 20, 100):
        checkpoint.save(tmp_path, step, {"identity": IDENTITY, "weights": {"w": torch.full((3,), float(step))}})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000020.pt", "step-00000100.pt"]
    state = checkpoint.load(tmp_path, IDENTITY)
    assert state is not None
    assert state["step"] == 100
    assert state["weights"]["w"].tolist() == [100.0] * 3


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, 1, {"identity": IDENTITY})

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, 2, {"identity": IDENTITY})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.pt"]


def test_another_run_is_refused_by_the_field(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 5, {"identity": IDENTITY})
    with pytest.raises(TrainingError, match="cannot be resumed: schedule was 'linear' and is now 'cosine'") as caught:
        checkpoint.load(tmp_path, {**IDENTITY, "schedule": "cosine"})
    assert "without --resume" in str(caught.value)
    with pytest.raises(TrainingError, match="data was 'd1' and is now 'd2'"):
        checkpoint.load(tmp_path, {**IDENTITY, "data": "d2"})


def test_nothing_to_resume_is_none(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path / "missing", IDENTITY) is None


def test_the_fingerprint_tells_models_apart() -> None:
    model, same = nn.Linear(5, 3), nn.Linear(5, 3)
    same.load_state_dict(model.state_dict())
    assert checkpoint.fingerprint(model) == checkpoint.fingerprint(same)
    with torch.no_grad():
        same.bias[1] += 1e-6
    assert checkpoint.fingerprint(model) != checkpoint.fingerprint(same)


@pytest.mark.parametrize("main", [True, False])
@pytest.mark.parametrize("fails", ["begin", "write", "end"])
def test_a_disk_that_is_full_for_one_process_is_full_for_all(
    tmp_path: Path, main: bool, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None waits for another, no half of it stays, and the checkpoint before is whole."""
    steps = iter(("begin", "write", "end"))
    said: list[int] = []

    def agree(number: int) -> list[int]:
        said.append(number)
        return [number, errno.ENOSPC if next(steps) == fails and not main else 0]

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    def write(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "part").write_text("numbers")
        if fails == "write" and main:
            full()

    if fails == "end":
        monkeypatch.setattr(checkpoint, "_write", full)
    if fails == "begin":
        monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(OSError, match=r"full|No space") as caught:
        checkpoint.save_shards(tmp_path, 3, {}, write, main=main, agree=agree)
    assert checkpoint.is_full(caught.value)
    assert said[-1] == (errno.ENOSPC if main else 0)
    assert not main or not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    tensors = {"weights": {"one": torch.arange(7.0)}}
    sharded.write_shards(tensors, tmp_path)
    back = {"weights": {"one": torch.zeros(7)}}
    sharded.read_shards(back, tmp_path)
    assert torch.equal(back["weights"]["one"], torch.arange(7.0))
    (part,) = tmp_path.glob("*.distcp")
    part.write_bytes(part.read_bytes()[:20])
    with pytest.raises(TrainingError, match=r"cannot be read: .*\. Delete it to go on from the one before"):
        sharded.read_shards(back, tmp_path)
