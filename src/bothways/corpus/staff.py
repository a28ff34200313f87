"""Several processes for one job, fed from one queue. One that dies is named, and its unit is done again by another."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

from bothways.corpus.inputs import Unit
from bothways.corpus.job import Job
from bothways.corpus.worker import Worker
from bothways.errors import BothwaysError, JobError

TRIES = 3
"""So often a unit is given out whose processes die."""


@dataclass
class _Member:
    """One process and what it is busy with."""

    name: str
    device: str | None
    process: Any
    connection: Any
    unit: Unit | None = None
    told: int = 0
    """Rows of the unit that were heard of."""


def work_in_processes(
    job: Job,
    units: Sequence[Unit],
    devices: Sequence[str | None],
    tell: Callable[[int], None],
    say: Callable[[str], None],
    *,
    work: Callable[..., None] | None = None,
) -> None:
    """Do the units by one process for each of `devices`; `tell` hears of rows, `say` of processes that die.

    Every process opens the encoder once. Raises what a unit raised, and JobError for one whose processes died
    three times. `work` is what a process runs.
    """
    run = work or _work
    waiting, tries = deque(units), Counter[int]()
    threads = max(1, _cores() // len(devices))
    staff: dict[int, _Member] = {}
    try:
        for number, device in enumerate(devices[: len(units)]):
            staff[number] = _hired(run, number, job, device, threads)
            _give(staff[number], waiting, tries)
        while busy := {member.connection: number for number, member in staff.items() if member.unit}:
            for connection in wait(list(busy)):
                number = busy[connection]
                member = staff[number]
                try:
                    heard = member.connection.recv()
                except (EOFError, OSError):
                    waiting.appendleft(_mourned(member, tries, say))
                    # What it has told is done again.
                    tell(-member.told)
                    staff[number] = _hired(run, number, job, member.device, threads)
                    heard = None
                if isinstance(heard, int):
                    member.told += heard
                    tell(heard)
                elif isinstance(heard, tuple):
                    _raised(heard[0], heard[1], member, job)
                else:
                    _give(staff[number], waiting, tries)
    finally:
        for member in staff.values():
            member.connection.close()
            if member.unit is not None:
                member.process.kill()
            member.process.join()


def _raised(problem: BothwaysError | None, trace: str, member: _Member, job: Job) -> NoReturn:
    if problem is not None:
        raise problem
    assert member.unit is not None
    raise JobError(f"{member.name} failed over {job.named(member.unit)}:\n{trace}")


def _hired(work: Callable[..., None], number: int, job: Job, device: str | None, threads: int) -> _Member:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, job, device, threads), daemon=True)
    process.start()
    # With the last other end open here too, a process that is gone would not be noticed.
    theirs.close()
    return _Member(f"worker {number} ({device or 'cpu'}, process {process.pid})", device, process, ours)


def _give(member: _Member, waiting: deque[Unit], tries: Counter[int]) -> None:
    member.unit, member.told = waiting.popleft() if waiting else None, 0
    if member.unit is not None:
        tries[member.unit.number] += 1
        # Of one that is gone already one hears when one listens to it.
        with suppress(OSError):
            member.connection.send(member.unit)


def _mourned(member: _Member, tries: Counter[int], say: Callable[[str], None]) -> Unit:
    """The unit of a process that died. Raises JobError if it has cost too many."""
    member.connection.close()
    member.process.join()
    code = member.process.exitcode
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    unit = member.unit
    assert unit is not None
    done = tries[unit.number]
    member.unit = None
    if done >= TRIES:
        raise JobError(
            f"{member.name} {how} over unit {unit.number}, as {done - 1} before it did. Is there too little memory? "
            "Use fewer processes; the same command goes on with the units that are left."
        )
    say(f"{member.name} {how} over unit {unit.number}; another one does it again (attempt {done + 1} of {TRIES})")
    return unit


def _work(connection: Connection, job: Job, device: str | None, threads: int) -> None:
    """What a process does: units, until nobody sends one. It ends with the process that started it."""
    # Ctrl-C is for the one that started it, which ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # As many processes as there are tokenise too.
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    import torch

    if device is None or device == "cpu":
        torch.set_num_threads(threads)
    try:
        with closing(Worker(job, device)) as worker:
            while True:
                connection.send(worker.do(connection.recv(), connection.send))
    except EOFError:
        return
    except BaseException as problem:
        known = problem if isinstance(problem, BothwaysError) else None
        connection.send((known, traceback.format_exc()))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
