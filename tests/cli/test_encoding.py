"""Contract of `bothways encode`: what it says, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bothways import convert, corpus
from bothways.cli import main
from bothways.corpus import Encoded
from bothways.corpus.layout import read_manifest
from bothways.corpus.worker import Worker


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, tiny_llama_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "tiny"
    convert(tiny_llama_folder, dtype="float32", device="cpu").save_pretrained(folder)
    return folder


def test_the_command_line_says_what_is_wrong_with_it(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("encode", encoder, "--out", tmp_path / "out") == 2
    assert "no input. Name one or more files" in capsys.readouterr().err
    assert call("encode", encoder, "a.txt", "--out", tmp_path / "out", "--processes", 0) == 2
    assert "--processes 0, expected 1 or more" in capsys.readouterr().err
    assert call("encode", encoder, "a.txt", "--out", tmp_path / "out", "--device", "cpu", "--devices", "cpu") == 2
    assert "--device and --devices say the same" in capsys.readouterr().err
    assert call("encode", encoder, tmp_path / "a.txt", "--out", tmp_path / "out", "--rows-per-part", 0) != 0


@pytest.mark.parametrize(
    ("flags", "devices"),
    [
        ((), ()),
        (("--device", "cuda:3"), ("cuda:3",)),
        (("--devices", "cuda:0,cuda:1", "cpu"), ("cuda:0", "cuda:1", "cpu")),
    ],
)
def test_devices_stand_with_commas_or_without(
    flags: tuple[str, ...], devices: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def encode(*given: Any, **options: Any) -> Encoded:
        asked.update(options)
        return Encoded(tmp_path, 0, 0, (), 0, 0.0, tmp_path)

    monkeypatch.setattr(corpus, "encode", encode)
    assert call("encode", "model", "a.txt", "--out", tmp_path, *flags, "--processes", 3) == 0
    assert (asked["devices"], asked["processes"]) == (devices, 3)
    assert asked["opening"] == {"dtype": None, "attn_implementation": None, "trust_remote_code": False, "backend": None}


def test_several_inputs_flags_and_the_list_of_rejected_rows(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text("key,body,year\nx,one,1\ny,two,2\n")
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"key": str(i), "body": ""}) + "\n" for i in range(12)))
    words = ("encode", encoder, tmp_path / "a.csv", tmp_path / "b.jsonl", "--out", tmp_path / "out")
    flags = ("--text-column", "body", "--id-column", "key", "--keep", "year:int", "--no-texts", "--device", "cpu")
    assert call(*words, *flags, "--on-bad-row", "skip", "--format", "npy") == 0
    said = capsys.readouterr().err
    assert f"encode: 12 rows could not be used, {tmp_path}/out/rejected.jsonl has all:\n" in said
    assert '  b.jsonl line 10: "body" is empty.\n  and 2 more\n' in said
    assert f"encode: 2 vectors in {tmp_path}/out (" in said
    assert f"encode: written to {tmp_path}/out/vectors.npy" in said
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.columns, manifest.texts, manifest.rows) == (("year",), False, 2)


def test_an_interrupted_job_says_how_to_go_on_and_goes_on(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\nthree\n")
    words = ("encode", encoder, tmp_path / "a.txt", "--out", tmp_path / "out", "--rows-per-part", 1, "--device", "cpu")
    real = Worker.do

    def do(self: Worker, unit: Any, *rest: Any) -> Any:
        if unit.number == 1:
            raise KeyboardInterrupt
        return real(self, unit, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "do", do)
        assert call(*words) == 130
    assert (
        f"encode: interrupted. What is finished stays in {tmp_path}/out; the same command goes on."
        in capsys.readouterr().err
    )
    assert read_manifest(tmp_path / "out", complete=False).rows == 1
    assert call(*words) == 0
    assert read_manifest(tmp_path / "out").rows == 3
