"""Tables on stdout, as wide as they need to be where stdout is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

from bothways.evaluation.tables import Cell, Row, columns, table

WIDE = 200


def console() -> Console:
    """The console for data."""
    return Console(width=None if sys.stdout.isatty() else WIDE, highlight=False)


def show(title: str, rows: Sequence[Row]) -> None:
    """Print one table of figures."""
    console().print(table(title, rows))


def sheet(title: str, rows: Sequence[Row]) -> None:
    """One table of figures on a terminal; elsewhere a line for each row, with tabs between, for programs."""
    if sys.stdout.isatty():
        show(title, rows)
        return
    heads = columns(rows)
    for line in [heads, *([_cell(row.get(head)) for head in heads] for row in rows)]:
        print("\t".join(line))


def _cell(cell: Cell) -> str:
    return "" if cell is None else str(cell)
