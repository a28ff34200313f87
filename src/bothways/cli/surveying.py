"""`bothways architectures`: which of transformers' decoders become bidirectional, measured here and now."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tyro.conf import Positional

from bothways.cli import tables
from bothways.cli.options import say
from bothways.provenance import versions

if TYPE_CHECKING:
    from bothways.architectures import Architecture

VERB = "architectures"
ENTRIES_BETWEEN_LINES = 20


Note = Callable[[str], None]
"""Shows that one more entry is measured."""


def architectures(names: Positional[tuple[str, ...]] = (), markdown: bool = False, workers: int | None = None) -> None:
    """Measure which decoders of transformers become bidirectional, on tiny random models.

    Args:
        names: Entries of transformers' causal-LM mapping, such as qwen3; all of them if none is named.
        markdown: Print a page in Markdown instead of a table.
        workers: Processes that measure, one thread each; one on each core if not given.
    """
    # Here and not above, so that --help and wrong usage answer at once: torch takes seconds to import.
    from bothways.architectures import BACKENDS, checked, page, rows, summary, sweep

    wanted = checked(names)
    found: list[Architecture] = []
    with _progress(len(wanted)) as note:
        for one in sweep(wanted, workers):
            found.append(one)
            note(one.name)
    found.sort(key=lambda one: one.name)
    if markdown:
        print(page(found, BACKENDS, versions()), end="")
    else:
        tables.show("Architectures", rows(found, BACKENDS))
    for one in found:
        for reason in () if markdown else one.reasons:
            say(f"{one.name}: {reason}")
        for failure in one.failures:
            say(f"{one.name}: SILENT FAILURE: {failure}")
    say(f"{VERB}: {summary(found)}")
    if any(one.failures for one in found):
        raise SystemExit(1)


@contextmanager
def _progress(number: int) -> Iterator[Note]:
    if not sys.stderr.isatty():
        yield _lines(number)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(VERB, total=number)

        def note(name: str) -> None:
            bar.update(task, advance=1, description=f"{VERB} {name}")

        yield note


def _lines(number: int) -> Note:
    done = 0

    def note(name: str) -> None:
        nonlocal done
        done += 1
        if done % ENTRIES_BETWEEN_LINES == 0 or done == number:
            say(f"{VERB}: {done}/{number} measured, last {name}")

    return note
