"""Contract: `docs/corpus.md` shows what is done: its commands and its Python are run."""

from __future__ import annotations

import gzip
import json
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
from pages import as_it_runs, blocks

from bothways import convert
from bothways.cli import main
from bothways.corpus import Encode
from bothways.corpus.layout import read_manifest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "corpus.md"
TEXT = PAGE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, tiny_llama_folder: Path, real_texts: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("desk")
    convert(tiny_llama_folder, dtype="float32", device="cpu").save_pretrained(folder / "my-encoder")
    rows = [{"id": i, "text": text[:80], "year": 2000 + i, "lang": "en"} for i, text in enumerate(real_texts[:40])]
    (folder / "docs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "more").mkdir()
    (folder / "more" / "a.csv.gz").write_bytes(gzip.compress(b"text,year,lang\none,2001,en\n,2002,en\n"))
    return folder


def test_the_commands_run(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    lines = [line for block in blocks("console", TEXT) for line in block.splitlines()]
    assert len(lines) == 3
    for line in lines:
        program, *arguments = shlex.split(line.removeprefix("$ "))
        assert program == "bothways"
        # Processes of their own take their time: theirs is the business of other tests.
        arguments = [*arguments[: arguments.index("--processes")], "--device", "cpu"] if "2" in arguments else arguments
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == 0, line
    assert read_manifest("all").rows == 41
    assert read_manifest("all").columns == ("year", "lang")


def test_the_python_runs(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    assert as_it_runs(PAGE) == TEXT


def test_flags_and_numbers_are_those_there_are() -> None:
    known = {f"--{field.name.replace('_', '-')}" for field in fields(Encode)} | {"--format", "--devices", "--processes"}
    named = set(re.findall(r"--[a-z][a-z-]+", TEXT)) - {"--nproc-per-node", "--out", "--no-texts"}
    assert named <= known, named - known
    assert f"({Encode().max_row_bytes >> 20} MiB)" in TEXT
