"""Contract: `docs/verify.md` shows what is done: its commands and its Python run, its numbers are the code's."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from endpoints import endpoints
from pages import as_it_runs, blocks

from bothways import Encoder, convert
from bothways.cli import main
from bothways.export.judging import COSINES, EXACT

PAGE = Path(__file__).resolve().parents[2] / "docs" / "verify.md"
TEXT = PAGE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, tiny_llama_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("desk")
    convert(tiny_llama_folder, dtype="float32", device="cpu").save_pretrained(folder / "my-encoder")
    return folder


@pytest.fixture(scope="module")
def address(desk: Path) -> Iterator[str]:
    with endpoints({"v1": Encoder.from_pretrained(desk / "my-encoder", device="cpu").encode}) as url:
        yield url


def test_the_commands_run(desk: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    lines = [line for block in blocks("console", TEXT) for line in block.splitlines()]
    assert len(lines) == 3
    for line in lines:
        program, *arguments = shlex.split(line.removeprefix("$ ").replace("http://127.0.0.1:8000", address))
        assert program == "bothways"
        with pytest.raises(SystemExit) as left:
            main([*arguments, "--device", "cpu"])
        assert left.value.code == 0, line
    assert (desk / "for-others" / "modules.json").exists()


def test_the_python_runs(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    assert as_it_runs(PAGE) == TEXT


def test_the_numbers_are_those_of_the_code() -> None:
    rows = {
        name: float(value) for name, value in re.findall(r"^\| (\w+).*\| cosine ([\d.]+) or more", TEXT, re.MULTILINE)
    }
    assert rows == COSINES
    assert f"by more than {EXACT:.0e} |".replace("e-04", "e-4") in TEXT
