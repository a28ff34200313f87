"""Tables on stdout, as wide as they need to be where stdout is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

from bothways.evaluation.tables import Row, table

WIDE = 200


def console() -> Console:
    """The console for data."""
    return Console(width=None if sys.stdout.isatty() else WIDE, highlight=False)


def show(title: str, rows: Sequence[Row]) -> None:
    """Print one table of figures."""
    console().print(table(title, rows))
