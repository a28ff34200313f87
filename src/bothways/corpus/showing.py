"""What a person sees of a job, on stderr: a bar with rate and time left, or lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

SECONDS_BETWEEN_LINES = 15.0


@runtime_checkable
class Show(Protocol):
    """Shows rows that are done, or a message."""

    def add(self, rows: int) -> None: ...

    def say(self, message: str) -> None: ...


@contextmanager
def showing(rows: int, *, wanted: bool) -> Iterator[Show]:
    """A bar, plain lines or silence, as fits; `rows` are to be done."""
    if not wanted:
        yield Silence()
    elif sys.stderr.isatty():
        with Bar(rows) as bar:
            yield bar
    else:
        yield Lines(rows)


class Silence:
    """Shows nothing."""

    def add(self, rows: int) -> None:
        """Nothing."""

    def say(self, message: str) -> None:
        """Nothing."""


class Lines:
    """One line every so many seconds."""

    def __init__(self, rows: int) -> None:
        self.rows, self.done = rows, 0
        self.begun = self.last = time.monotonic()

    def add(self, rows: int) -> None:
        """So many rows more are done."""
        self.done += rows
        now = time.monotonic()
        if now - self.last < SECONDS_BETWEEN_LINES or not self.done:
            return
        self.last = now
        rate = self.done / (now - self.begun)
        self.say(
            f"{self.done:,} of {self.rows:,} texts  {rate:,.0f} texts/s  {_clock((self.rows - self.done) / rate)} left"
        )

    def say(self, message: str) -> None:
        """One line."""
        print(f"encode: {message}", file=sys.stderr, flush=True)


class Bar:
    """rich's progress bar with rate and time left."""

    def __init__(self, rows: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.bar = Progress(
            TextColumn("encode"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]} texts/s"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self.task = self.bar.add_task("encode", total=rows, rate="-")
        self.begun, self.done = time.monotonic(), 0

    def __enter__(self) -> Bar:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def add(self, rows: int) -> None:
        """So many rows more are done."""
        self.done += rows
        rate = self.done / max(time.monotonic() - self.begun, 1e-9)
        self.bar.update(self.task, completed=self.done, rate=f"{rate:,.0f}")

    def say(self, message: str) -> None:
        """One line above the bar."""
        self.bar.console.print(f"encode: {message}", highlight=False)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
