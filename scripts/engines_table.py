"""Write the table of `docs/engines.md` from `bothways.engines`: `python scripts/engines_table.py`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from bothways.engines import ENGINES, Engine

PAGE = Path(__file__).resolve().parent.parent / "docs" / "engines.md"
BEGIN, END = "<!-- table: python scripts/engines_table.py -->", "<!-- end of the table -->"


def table() -> str:
    """Families down, engines across: the key by which each is right."""
    engines = list(ENGINES.values())
    rows = [
        ["family", *(f"{engine.name} {engine.version}" for engine in engines)],
        ["---"] * (len(engines) + 1),
        *(
            [family, *(_cell(engine, family) for engine in engines)]
            for family in sorted({family for engine in engines for family in engine.families})
        ),
        ["pooling", *(", ".join(sorted(engine.poolings)) for engine in engines)],
        ["how it is known", *(f"{engine.how} {engine.date}".strip() for engine in engines)],
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def page() -> str:
    """The page with the table as it is now."""
    pattern = rf"(?s)({re.escape(BEGIN)}\n).*?({re.escape(END)})"
    return re.sub(pattern, lambda found: f"{found[1]}{table()}\n{found[2]}", PAGE.read_text(encoding="utf-8"))


def _cell(engine: Engine, family: str) -> str:
    key = engine.families.get(family)
    if key is None:
        return ""
    return f"`{key}`" + (" and the plugin" if family in engine.plugin else "")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written to {PAGE.name}", file=sys.stderr)
