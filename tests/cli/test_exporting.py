"""Contract: `bothways export` and `bothways verify`: what is written is right or not there, what is causal is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bothways import convert
from bothways.cli import main


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, tiny_llama_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("enc") / "encoder"
    prompts = {"query": "Find what answers this: "}
    convert(tiny_llama_folder, dtype="float32", device="cpu", prompts=prompts).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def planted(encoder: Path) -> Path:
    """What a loader makes of the folder that knows nothing of its keys: the same weights, opened causal."""
    folder = encoder.with_name("planted")
    shutil.copytree(encoder, folder)
    (folder / "bothways.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "is_causal": True}))
    return folder


def test_a_folder_is_its_own_reference(encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("verify", encoder, "--device", "cpu") == 0
    printed = capsys.readouterr().out
    assert f"sentence-transformers on {encoder} matches the bidirectional reference of {encoder}" in printed
    assert 'the stored prompt "query"' in printed


def test_a_planted_causal_folder_is_caught(planted: Path, encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("verify", planted, "--against", encoder, "--device", "cpu", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["matches"], found["expected"], found["right"]) == ("causal", "bidirectional", False)
    assert {case["matches"] for case in found["cases"]} == {"causal"}
    assert all(
        case["causal"]["difference"] < 1e-5 < 1e-2 < case["bidirectional"]["difference"] for case in found["cases"]
    )


def test_an_export_is_verified(encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert call("export", encoder, "--to", "sentence-transformers", "--out", out, "--device", "cpu") == 0
    assert f"sentence-transformers on {out} matches the bidirectional reference" in capsys.readouterr().err
    assert call("verify", out, "--against", encoder, "--device", "cpu") == 0
    assert call("export", encoder, "--to", "sentence-transformers", "--out", out) == 1
    assert "exists. Name another" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
