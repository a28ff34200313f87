"""`bothways demo`: the whole path on the documentation that is on every machine, offline, in minutes."""

from __future__ import annotations

from pathlib import Path


def run(out: str | Path | None = None) -> Path:
    """Train, measure and use an encoder of this machine's documentation; return the folder that holds it.

    `out` is a folder that is empty or does not exist; without one, a temporary folder is made.
    Raises DataError if `out` holds something.
    """
    # Not at the top: the processes that read docstrings import this package, and need nothing of what trains.
    from bothways.demo.steps import run as steps

    return steps(out)
