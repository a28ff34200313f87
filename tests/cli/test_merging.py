"""Contract: `bothways merge`, folders in, a folder out; what is wrong is said before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bothways import Encoder, Merge, convert, merge
from bothways.cli import main

WORDS = ["a text", "another, which is longer"]


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory, tiny_llama_folder: Path) -> Path:
    """0: a conversion; 1 and 2: each moved from it by some noise; last: pooled otherwise."""
    out = tmp_path_factory.mktemp("enc")
    for number in range(3):
        encoder = convert(tiny_llama_folder, dtype="float32", device="cpu")
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for weight in encoder.parameters() if number else ():
                weight += 0.03 * torch.randn(weight.shape, generator=generator)
        encoder.save_pretrained(out / str(number))
    convert(tiny_llama_folder, dtype="float32", device="cpu", pooling="last").save_pretrained(out / "last")
    return out


@pytest.mark.parametrize(
    ("flags", "settings", "anchored"),
    [
        ((), Merge(), False),
        (("--weights", 3, 1), Merge(weights=(3, 1)), False),
        (("--method", "slerp", "--t", 0.3), Merge(method="slerp", t=0.3), True),
        (("--weights", 1, "-0.5", "--no-head"), Merge(weights=(1, -0.5), head=False), True),
    ],
)
def test_the_verb_is_the_stage(
    flags: tuple[object, ...],
    settings: Merge,
    anchored: bool,
    encoders: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = ("--base", encoders / "0") if anchored else ()
    assert call("merge", encoders / "1", encoders / "2", *flags, *base, "--out", tmp_path / "out") == 0
    shown = capsys.readouterr()
    assert not shown.out
    assert f"merge: written to {tmp_path / 'out'}" in shown.err
    assert "bidirectional, measured in 3 mixing sub-modules" in shown.err
    zero, one, two = (Encoder.from_pretrained(encoders / str(number)) for number in range(3))
    expected = merge([one, two], settings, base=zero if anchored else None)
    found = Encoder.from_pretrained(tmp_path / "out")
    np.testing.assert_array_equal(found.encode(WORDS), expected.encode(WORDS))
    assert (found.head is None) == (not settings.head)
    assert [entry["name"] for entry in found.record.stages[-1]["encoders"]] == [str(encoders / n) for n in "12"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("0",), 1, "ConfigError: merge: 1 encoder, expected two or more."),
        (("0", "1", "0"), 2, "0 is named twice. Name it once, and give it more of --weights."),
        (("0", "1", "--weights", "1"), 1, "Merge(weights=(1)): 2 encoders need as many weights. Give one for each."),
        (("0", "1", "--t", "2"), 2, "Merge(t=2): expected 0 <= t <= 1."),
        (("0", "last"), 1, 'ConfigError: merge: 0 and last differ in pooling: "mean" and "last".'),
        (("0", "no-such"), 1, 'DataError: "no-such" is no folder here'),
        (("0", "run.checkpoints"), 1, "DataError: run.checkpoints is of the checkpoints of a run"),
        (("0", "1", "--base", "run.checkpoints/step-00000002.pt"), 1, "Finish the run with --resume and merge run;"),
    ],
)
def test_what_is_wrong_is_said(
    arguments: tuple[str, ...],
    code: int,
    message: str,
    encoders: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("0", "1", "last"):
        (tmp_path / name).symlink_to(encoders / name)
    (tmp_path / "run.checkpoints").mkdir()
    (tmp_path / "run.checkpoints" / "step-00000002.pt").touch()
    assert call("merge", *arguments, "--out", "out") == code
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_out_is_never_overwritten(encoders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("merge", encoders / "0", encoders / "1", "--out", encoders / "2") == 1
    assert "nothing is overwritten" in capsys.readouterr().err
