"""Contract: `docs/gguf.md` names what there is, and its commands run."""

from __future__ import annotations

import ast
import shlex
from pathlib import Path

import pytest
from llama_families import save_encoder, tokenizer
from pages import blocks

from bothways.cli import main
from bothways.export.engines.gguf import VARIABLE
from bothways.export.gguf_file import FORMATS, GgufFile
from bothways.export.gguf_model import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "gguf.md").read_text(encoding="utf-8")


def test_the_commands_run(
    real_texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bothways.export.gguf.interpreter", lambda: None)
    save_encoder("qwen2", tmp_path, tokenizer(real_texts[:60], "words", 300)).rename(tmp_path / "my-encoder")
    monkeypatch.chdir(tmp_path)
    lines = [line for block in blocks("console", TEXT) for line in block.splitlines()]
    assert len(lines) == 2
    for line in lines:
        program, *arguments = shlex.split(line.removeprefix("$ "))
        assert program == "bothways"
        with pytest.raises(SystemExit) as left:
            main([*arguments, "--device", "cpu"])
        assert left.value.code == 0, line
        assert "llama.cpp itself was not run" in capsys.readouterr().err
    assert GgufFile("my-encoder.gguf").number_format == "float16"
    assert GgufFile("my-encoder-q8_0.gguf").number_format == "q8_0"


def test_names_are_those_there_are() -> None:
    assert f"Families: {', '.join(FAMILIES)}." in TEXT
    assert "f16 (the default), f32 or q8_0" in TEXT
    assert set(FORMATS) == {"f16", "f32", "q8_0"}
    assert VARIABLE in TEXT
    assert (ROOT / "scripts" / "llama_cpp_env.py").exists()
    # The package of another environment: its Python is read here, and its call is the engine's own.
    ast.parse(blocks("py", TEXT)[0])
    worker = (ROOT / "src/bothways/export/engines/llama_worker.py").read_text(encoding="utf-8")
    for argument in ("embedding=True", "n_ctx=", "n_batch=", "n_ubatch="):
        assert argument in worker
        assert argument in TEXT
