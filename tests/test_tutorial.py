"""Contract: the tutorial's Python runs, offline and without a warning, and prints what the page says it prints.

`python tests/test_tutorial.py` writes what it prints now into the page.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from pages import as_it_runs

PAGE = Path(__file__).resolve().parents[1] / "docs" / "tutorial.md"


def test_the_page_shows_what_its_python_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert as_it_runs(PAGE) == PAGE.read_text(encoding="utf-8"), f"run: {sys.executable} tests/test_tutorial.py"


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        page = as_it_runs(PAGE)
        os.chdir(PAGE.parent)
    PAGE.write_text(page, encoding="utf-8")
