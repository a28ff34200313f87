"""A worker on another machine, whichever engine runs it there: units go out and answers come back as columns."""

from __future__ import annotations

import os
import socket
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from bothways import errors
from bothways.corpus.inputs import Unit
from bothways.corpus.job import JOB, Job
from bothways.corpus.parquet import PARTIAL, partial_of
from bothways.corpus.showing import Show
from bothways.corpus.staff import TRIES
from bothways.corpus.worker import Done, Worker
from bothways.errors import BothwaysError, JobError


@dataclass(frozen=True)
class Answer:
    """What a unit has come to, in values that every engine can carry: whole numbers and texts."""

    unit: int
    rows: int = 0
    rejected: int = 0
    said: str = ""
    """Warnings, a line each."""
    kind: str = ""
    """The class of the error that it came to, one of `bothways.errors`; "" is none."""
    problem: str = ""
    """What the error says."""


def rows_of(units: Sequence[Unit]) -> list[dict[str, int]]:
    """The units as rows of an engine."""
    return [asdict(unit) for unit in units]


class Remote:
    """Does units that an engine brings. It can be pickled; the encoder is opened when the first unit is done.

    A unit whose part is there is not done again, and one over which three workers died is given up. No error leaves it:
    they come as answers.
    """

    def __init__(self, job: Job, device: str | None = None) -> None:
        self.worker = Worker(job, device)

    def __call__(self, batch: Mapping[str, Sequence[int]]) -> dict[str, list[Any]]:
        """Columns of units -> columns of answers, as batches of Ray Data are."""
        columns = [batch[field.name] for field in fields(Unit)]
        answers = [self.answer(Unit(*map(int, values))) for values in zip(*columns, strict=True)]
        return {field.name: [getattr(answer, field.name) for answer in answers] for field in fields(Answer)}

    def frames(self, frames: Iterable[Any]) -> Iterator[Any]:
        """The same for data frames of pandas, as Spark's `mapInPandas` wants it."""
        import pandas

        with closing(self.worker):
            for frame in frames:
                yield pandas.DataFrame(self(frame.to_dict("list")))

    def answer(self, unit: Unit) -> Answer:
        """What the unit has come to."""
        job = self.worker.job
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                done = self._done(unit)
            except BothwaysError as problem:
                return Answer(unit.number, kind=_known(problem), problem=str(problem))
            except Exception:
                trace = traceback.format_exc()
                return Answer(
                    unit.number, kind=JobError.__name__, problem=f"{_place()} failed over {job.named(unit)}:\n{trace}"
                )
        lines = "\n".join(f"{_place()}, {job.named(unit)}: {item.message}" for item in said)
        return Answer(unit.number, done.rows, done.rejected, lines)

    def _done(self, unit: Unit) -> Done:
        job = self.worker.job
        self._check_place(unit)
        if job.is_done(unit):
            # Its worker died before anybody heard of it.
            rows = pq.read_metadata(job.part(unit)).num_rows
            return Done(unit.number, rows, unit.rows - rows)
        self._count_try(unit)
        return self.worker.do(unit)

    def _count_try(self, unit: Unit) -> None:
        """Raises JobError if too many workers have died over a unit. Each has left the file that it was writing."""
        own = partial_of(self.worker.job.part(unit))
        own.touch()
        head = f".{self.worker.job.part(unit).name}."
        dead = [path.name for path in own.parent.glob(f"{head}*{PARTIAL}") if path != own]
        if len(dead) >= TRIES:
            own.unlink()
            names = ", ".join(sorted(name.removeprefix(head).removesuffix(PARTIAL) for name in dead))
            raise JobError(
                f"{len(dead)} workers died over {self.worker.job.named(unit)}: {names} (machine-process). Is there too "
                "little memory? Use fewer workers for each machine; the same command goes on with the units that are "
                "left."
            )

    def _check_place(self, unit: Unit) -> None:
        """Raises JobError if this machine does not see what the job needs."""
        job = self.worker.job
        file = job.files[unit.file]
        needed: list[Any] = [job.out / JOB, Path(job.encoder), None if file.hub is not None else file.source]
        for path in needed:
            if isinstance(path, Path) and path.is_absolute() and not path.exists():
                raise JobError(
                    f"{_place()} does not see {path}. Encoder, input and --out must be at the same place on every "
                    "machine: use a file system that they share (NFS, Lustre, a mounted bucket), or URLs as input."
                )


def settle(answers: Iterable[Mapping[str, Any]], job: Job, units: Sequence[Unit], show: Show) -> None:
    """Show the answers of an engine to its units as they come. Raises the error of the first that came to one.

    JobError if a unit was not answered.
    """
    left = {unit.number: unit for unit in units}
    for answer in answers:
        for line in filter(None, answer["said"].split("\n")):
            show.say(line)
        if answer["kind"]:
            raise getattr(errors, answer["kind"])(answer["problem"])
        unit = left.pop(int(answer["unit"]), None)
        # A machine that was lost may have its answers given once more.
        if unit is not None:
            show.add(unit.rows)
    if left:
        first = job.named(next(iter(left.values())))
        raise JobError(f"{len(left):,} units have no answer, the first is {first}. The same command does them.")


def _known(problem: BothwaysError) -> str:
    """The class of an error by the name under which everybody finds it."""
    return next(kind.__name__ for kind in type(problem).__mro__ if kind.__module__ == errors.__name__)


def _place() -> str:
    return f"a worker on {socket.gethostname()} (process {os.getpid()})"
