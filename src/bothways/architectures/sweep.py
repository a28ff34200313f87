"""Measure many architectures, in as many processes as there are cores."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

from bothways.architectures.measure import entries, measure
from bothways.architectures.record import Architecture
from bothways.errors import ConfigError, did_you_mean


def sweep(names: Sequence[str] = (), workers: int | None = None) -> Iterator[Architecture]:
    """Each entry as soon as it is measured, in any order; all entries if no name is given.

    `workers` is the number of processes, one thread each; None: one for each core. 1 stays in this process.
    Raises ConfigError for a name that is not in transformers' causal-LM mapping, or for no workers.
    """
    names = checked(names)
    workers = (os.cpu_count() or 1) if workers is None else workers
    if workers < 1:
        raise ConfigError(f"workers={workers}: at least one process must measure. Leave it out for one on each core.")
    return _measured(names, min(workers, len(names)))


def checked(names: Sequence[str]) -> list[str]:
    """The names without repetition, or all of them. Raises ConfigError for one that is not known."""
    known = entries()
    for name in names:
        if name not in known:
            raise ConfigError(f'"{name}" is not in transformers\' causal-LM mapping. {did_you_mean(name, known)}')
    return list(dict.fromkeys(names)) or known


def _measured(names: list[str], workers: int) -> Iterator[Architecture]:
    if workers == 1:
        yield from map(measure, names)
        return
    # A forked process would inherit torch's threads in whatever state they are.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            for future in as_completed([pool.submit(measure, name) for name in names]):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)
