"""Contract: `docs/encode.md` shows what is done: its Python is run, and prints what the page says."""

from __future__ import annotations

from pathlib import Path

import pytest
from pages import as_it_runs

from bothways import convert

PAGE = Path(__file__).resolve().parents[2] / "docs" / "encode.md"


def test_the_python_runs(tmp_path: Path, tiny_llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert(tiny_llama_folder, dtype="float32", device="cpu").save_pretrained(tmp_path / "my-encoder")
    monkeypatch.chdir(tmp_path)
    assert as_it_runs(PAGE) == PAGE.read_text(encoding="utf-8")
