"""What a person sees of a running stage, on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

SECONDS_BETWEEN_LINES = 15


@runtime_checkable
class Show(Protocol):
    """Shows a step that was done, or a message."""

    def step(self, done: int, loss: float, tokens_per_second: float) -> None: ...

    def say(self, message: str) -> None: ...


@contextmanager
def progress(name: str, steps: int, *, wanted: bool) -> Iterator[Show]:
    """A bar, plain lines or silence, as fits."""
    if not wanted:
        yield Silence()
    elif sys.stderr.isatty():
        with Bar(name, steps) as bar:
            yield bar
    else:
        yield Lines(name, steps)


class Silence:
    """Shows nothing."""

    def step(self, done: int, loss: float, tokens_per_second: float) -> None:
        """Nothing."""

    def say(self, message: str) -> None:
        """Nothing."""


class Lines:
    """One line every so many seconds, and at the last step."""

    def __init__(self, name: str, steps: int) -> None:
        self.name, self.steps = name, steps
        self.begun = self.last = time.monotonic()
        self.first: int | None = None

    def step(self, done: int, loss: float, tokens_per_second: float) -> None:
        """One more step is done."""
        self.first = done - 1 if self.first is None else self.first
        now = time.monotonic()
        if now - self.last < SECONDS_BETWEEN_LINES and done < self.steps:
            return
        self.last = now
        left = (now - self.begun) / (done - self.first) * (self.steps - done)
        self.say(f"step {done}/{self.steps}  loss {loss:.4f}  {tokens_per_second:,.0f} tokens/s  {_clock(left)} left")

    def say(self, message: str) -> None:
        """One line."""
        print(f"{self.name}: {message}", file=sys.stderr, flush=True)


class Bar:
    """rich's progress bar with loss, rate and time left."""

    def __init__(self, name: str, steps: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.name = name
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[rate]} tokens/s"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self.task = self.bar.add_task(name, total=steps, loss="-", rate="-")

    def __enter__(self) -> Bar:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def step(self, done: int, loss: float, tokens_per_second: float) -> None:
        """One more step is done."""
        self.bar.update(self.task, completed=done, loss=f"{loss:.4f}", rate=f"{tokens_per_second:,.0f}")

    def say(self, message: str) -> None:
        """One line above the bar."""
        self.bar.console.print(f"{self.name}: {message}", highlight=False)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
