"""Pages of Markdown whose Python is run: `from pages import ...`."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout
from pathlib import Path


def blocks(language: str, page: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def run(page: Path) -> list[str]:
    """Runs the page's Python, block after block in one scope; returns what each printed."""
    scope: dict[str, object] = {}
    return [_printed(block, scope, page.name) for block in blocks("python", page.read_text(encoding="utf-8"))]


def as_it_runs(page: Path) -> str:
    """The page with what its Python prints, block by block, where the page shows what it printed."""
    printed = iter(run(page))

    def with_output(shown: re.Match[str]) -> str:
        output = next(printed)
        return shown[1] + (f"\n```text\n{output}```\n" if output else "")

    pattern = r"(```python\n.*?```\n)(?:\n```text\n.*?```\n)?"
    return re.sub(pattern, with_output, page.read_text(encoding="utf-8"), flags=re.DOTALL)


def _printed(block: str, scope: dict[str, object], name: str) -> str:
    with redirect_stdout(io.StringIO()) as printed:
        exec(compile(block, f"<python in {name}>", "exec"), scope)
    return printed.getvalue()
