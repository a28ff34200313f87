"""Contract: `docs/data.md` shows what is read: its rows are read here, its commands parsed, its Python run."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from pages import as_it_runs, blocks

from bothways.data import KEYS, Example, Policy, as_source, read_examples
from bothways.data.e5 import ENOUGH, SETS
from bothways.data.examples import (
    DOCUMENT_INSTRUCTION,
    NEGATIVE,
    PAIRS,
    POSITIVE,
    QUERY,
    QUERY_INSTRUCTION,
    SCORE,
)
from bothways.data.sources import Source
from bothways.recipe import read

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data.md"
TEXT = PAGE.read_text(encoding="utf-8")
ROWS = re.findall(r"```(jsonl|csv)(\?\S+)?\n(.*?)```\n\n```text\n(.*?)```", TEXT, re.DOTALL)


def shown(example: Example) -> str:
    """The example as Python writes it, without what is at its default."""
    default = Example("", "")
    given = {field.name: getattr(example, field.name) for field in fields(Example)}
    said = [f"{name}={value!r}" for name, value in given.items() if value != getattr(default, name)]
    return f"Example({', '.join(said)})\n"


@pytest.mark.parametrize(("suffix", "options", "rows", "examples"), ROWS)
def test_rows_become_what_is_shown(tmp_path: Path, suffix: str, options: str, rows: str, examples: str) -> None:
    path = tmp_path / f"rows.{suffix}"
    path.write_text(rows)
    assert "".join(map(shown, read_examples(f"{path}{options}"))) == examples


def test_every_row_of_the_page_is_read() -> None:
    opened = len(re.findall(r"```(?:jsonl|csv)", TEXT))
    assert opened == len(ROWS) > 5


def test_the_python_prints_what_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert as_it_runs(PAGE) == TEXT, f"the page shows what {sys.executable} does not print"


def test_the_recipe_and_the_command_name_keys_that_there_are(tmp_path: Path) -> None:
    (recipe,) = blocks("yaml", TEXT)
    (tmp_path / "recipe.yaml").write_text(recipe)
    (step,) = read(tmp_path / "recipe.yaml", files_exist=False).steps
    first, second, hub, folder = step.files.data
    assert first.policy == Policy(symmetric=True)
    assert second.policy == Policy(in_batch=False, temperature=0.1)
    assert (hub.config, hub.policy, folder.format) == ("en", Policy(across=False), "e5")
    (command,) = blocks("console", TEXT)
    words = shlex.split(command.removeprefix("$ "))
    sources = [as_source(word) for word in words[words.index("--data") + 1 : words.index("--out")]]
    assert [(source.weight, source.score_max) for source in sources] == [(2.0, 1.0), (1.0, 5.0)]


def test_every_name_and_every_key_stands_on_the_page() -> None:
    names = [*QUERY, *POSITIVE, *NEGATIVE, *QUERY_INSTRUCTION, *DOCUMENT_INSTRUCTION, *SCORE, *PAIRS, *PAIRS.values()]
    keys = [key for key in KEYS if key not in ("path", "column")]
    assert [name for name in [*names, *keys] if f"`{name}`" not in TEXT] == []
    assert f"at least {ENOUGH} of the {len(SETS)} data sets" in TEXT
    defaults = dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", TEXT, re.MULTILINE))
    for key in ("weight", "in_batch", "across", "symmetric", "score_max", "format"):
        value = getattr(Source, key)
        assert defaults[key] == (str(value).lower() if isinstance(value, bool | str) else f"{value:g}"), key
