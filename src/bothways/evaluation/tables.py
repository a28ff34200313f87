"""Rows of figures -> a table on the screen, in Markdown, in a JSON file. All three are made from the same rows."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

Cell = str | int | float | None
Row = Mapping[str, Cell]
"""Column -> value. Fractions between -1 and 1 show three decimals, larger numbers one; None shows a dash."""
DECIMALS = {"seconds": 0, "peak GiB": 1}
"""Columns that are no scores."""


def table(title: str, rows: Sequence[Row]) -> Table:
    """The rows for a rich console; columns in the order in which the rows bring them, numbers to the right."""
    shown = Table(title=title, title_justify="left")
    for column in columns(rows):
        numeric = any(isinstance(row.get(column), int | float) for row in rows)
        shown.add_column(column, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        shown.add_row(*(spell(row.get(column), column) for column in columns(rows)))
    return shown


def markdown(rows: Sequence[Row]) -> str:
    """The same table for a README."""
    heads = columns(rows)
    numeric = [any(isinstance(row.get(column), int | float) for row in rows) for column in heads]
    lines = [heads, ["---:" if right else "---" for right in numeric]]
    lines += [[spell(row.get(column), column) for column in heads] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def columns(rows: Sequence[Row]) -> list[str]:
    """Every column once, in order of appearance."""
    return list(dict.fromkeys(column for row in rows for column in row))


def spell(cell: Cell, column: str = "") -> str:
    """A cell as it is shown in a column."""
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:,.{DECIMALS.get(column, 3 if abs(cell) <= 1 else 1)}f}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def write_json(path: str | Path, content: Any) -> None:
    """`content` as indented JSON. The file appears whole or not at all."""
    path = Path(path)
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(unfinished, path)
