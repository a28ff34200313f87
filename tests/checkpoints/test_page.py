"""Contract: `docs/llm2vec.md` shows what is done: its commands and its Python are run, on local folders."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
from lora_folders import amend
from pages import as_it_runs, blocks

from bothways.cli import main
from bothways.references import LLM2VecConfig

PAGE = Path(__file__).resolve().parents[2] / "docs" / "llm2vec.md"
TEXT = PAGE.read_text(encoding="utf-8")


@pytest.fixture
def desk(
    tiny_llama_folder: Path, mntp: Path, supervised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    shutil.copytree(tiny_llama_folder, tmp_path / "tiny-llama")
    for folder in (mntp, supervised):
        shutil.copytree(folder, tmp_path / folder.name)
        amend(tmp_path / folder.name / "adapter_config.json", base_model_name_or_path="tiny-llama")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_runs(desk: Path) -> None:
    assert as_it_runs(PAGE) == TEXT


def test_the_commands_run(desk: Path) -> None:
    lines = [line for block in blocks("console", TEXT) for line in block.splitlines()]
    assert len(lines) == 2
    for line in lines:
        program, *arguments = shlex.split(line.removeprefix("$ "))
        assert program == "bothways"
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == 0, line
    assert json.loads(Path("my-encoder/bothways.json").read_text())["stages"][1]["name"] == "tiny-mntp"
    assert os.listdir("my-encoder")


def test_its_defaults_are_those_of_the_class() -> None:
    said = asdict(LLM2VecConfig())
    assert said == {"pooling_mode": "mean", "max_length": 512, "doc_max_length": 400, "skip_instruction": True}
    assert "until 400 tokens are left" in TEXT
