"""Contract: `docs/serve.md` shows what is done: its Python and its curl are run against a server."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path

import httpx
import pytest
from pages import as_it_runs, blocks
from serving import Forks, Server

from bothways.cli.options import Opening
from bothways.serve import Serve

PAGE = Path(__file__).resolve().parents[2] / "docs" / "serve.md"
TEXT = PAGE.read_text(encoding="utf-8")
WRITTEN = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def server(forks: Forks, folder: Path) -> Server:
    """Named as on the page; its port is one that is free."""
    return forks.start(folder, "--served-name", "my-encoder")


def test_the_python_runs(server: Server, tmp_path: Path) -> None:
    here = tmp_path / PAGE.name
    here.write_text(TEXT.replace(WRITTEN, server.url), encoding="utf-8")
    assert as_it_runs(here).replace(server.url, WRITTEN) == TEXT


def test_the_commands_run(server: Server) -> None:
    start, ask = blocks("console", TEXT)
    said = [line for line in start.splitlines() if not line.startswith("$")]
    assert server.said.replace(server.url, WRITTEN).splitlines()[: len(said)] == said
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    answers = []
    for line in ask.replace(WRITTEN, server.url).splitlines():
        words = shlex.split(line.removeprefix("$ "))
        answers.append(json.loads(subprocess.run(words, capture_output=True, check=True, timeout=60).stdout))
    assert len(answers[0]["data"][0]["embedding"]) == 2
    assert answers[1]["data"][0]["id"] == "my-encoder"


def test_flags_defaults_and_metrics_are_those_there_are(server: Server) -> None:
    known = {field.name: field.default for field in fields(Serve)}
    opening = {field.name for field in fields(Opening)}
    table = TEXT[TEXT.index("## Settings") : TEXT.index("## Watching it")]
    named = {
        flag.replace("-", "_") for flag in re.findall(r"--([a-z][a-z-]+)", TEXT[: TEXT.index("## How fast it is")])
    }
    assert named == known.keys() | opening
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in table.splitlines() if line.startswith("| `--")]
    for flags, default in rows:
        names = [flag.replace("-", "_") for flag in re.findall(r"--([a-z-]+)", flags)]
        given = [str(known[name]) for name in names if isinstance(known.get(name), (int, float, str))]
        if given:
            assert default == ", ".join(value.removesuffix(".0") for value in given), flags
    page = httpx.get(f"{server.url}/metrics").text
    families = set(re.findall(r"^# TYPE (\S+) (?!gauge$)\S+$|^# TYPE (\S+) gauge$", page, re.MULTILINE))
    there = {one or other for one, other in families}
    listed = set(re.findall(r"`(bothways_[a-z_]+)`", TEXT))
    assert listed == {name for name in there if not name.endswith("_created")}
