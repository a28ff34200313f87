"""Encode a corpus: plan it or find what was planned, do the units that are left, write the manifest."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from bothways.corpus import job as jobs
from bothways.corpus.inputs import Rejected, Unit
from bothways.corpus.job import Encode, Job
from bothways.corpus.layout import Part
from bothways.corpus.parquet import PARTIAL, whole
from bothways.corpus.showing import Show, Silence, showing
from bothways.corpus.sinks import Format, check_format, write_as
from bothways.corpus.staff import work_in_processes
from bothways.corpus.worker import Worker
from bothways.data import Source
from bothways.errors import ConfigError, DataError, JobError

ROWS_ON_CPU, ROWS_ON_GPU = 8192, 65536
"""Rows of a part, so that it takes minutes."""
REJECTED = "rejected.jsonl"
LISTED = 10
MANIFEST_EVERY = 30.0
"""Seconds between manifests of a job that is not finished."""
Engine = Callable[[Job, Sequence[Unit], Show], None]
"""Does units of a job: in this process, in several, on many machines."""


@dataclass(frozen=True)
class Encoded:
    """What a job has come to."""

    folder: Path
    vectors: int
    rejected: int
    """Rows that could not be used, and what damaged files lost."""
    listed: tuple[str, ...]
    """The first of them in words."""
    done: int
    """Rows that were encoded in this run."""
    seconds: float
    written: Path
    """The folder, or what was made of it in another format."""
    whole: bool = True
    """Whether this is what the job has come to; in all but the first process of a launch it is its own share."""


def encode(
    encoder: str | Path,
    inputs: Sequence[str | Path | Source],
    out: str | Path,
    settings: Encode | None = None,
    *,
    devices: Sequence[str] = (),
    processes: int = 1,
    format: Format = "parquet",
    opening: dict[str, Any] | None = None,
    engine: Engine | None = None,
    show_progress: bool = False,
) -> Encoded:
    """Write the vectors of a corpus of any size as a folder of Parquet parts, in constant memory.

    `inputs` are files, folders, patterns, URLs and `hub:` data sets. The folder keeps the job: after an interruption of
    any kind the same call does what is left, and finished parts stay as they are. With several `devices`, or
    several `processes` for each, every one is a process of its own with the encoder. `engine` takes the place of all
    that. Under a launcher (torchrun) each process does its share.

    Raises ConfigError for a folder that holds something else or a job that is not the same, DataError for inputs and
    rows that cannot be used, JobError if processes die again and again, or an engine leaves parts out.
    """
    # Here, so that a command line is understood before torch is there.
    from bothways import hardware
    from bothways.training import processes as launch

    begun = time.monotonic()
    out, settings = Path(out).absolute(), settings or Encode()
    check_format(format)
    where = launch.place()
    if where.processes > 1 and (devices or processes > 1 or engine):
        raise ConfigError("encode: a launcher has started several processes already. Leave --devices out.")
    if not where.main:
        # The first one plans; what it has kept is read.
        launch.wait(where)
        job, units = jobs.read(out)
        share = _missing(job, units[where.rank :: where.processes])
        one_after_another(job, share, Silence())
        rows = sum(unit.rows for unit in share)
        return Encoded(out, rows, 0, (), rows, time.monotonic() - begun, out, whole=False)
    with _alone(out):
        kind = hardware.choose_device(devices[0] if devices else None).value.type
        rows = ROWS_ON_CPU if kind == "cpu" else ROWS_ON_GPU
        workers = max(len(devices), 1) * processes * where.processes
        job, units = jobs.begin(encoder, inputs, out, settings, dict(opening or {}), rows, workers)
        _sweep(out)
        launch.wait(where)
        todo = _missing(job, units[:: where.processes])
        with showing(sum(unit.rows for unit in todo), wanted=show_progress) as show:
            ledger = Ledger(job, units, show)
            try:
                (engine or _engine(devices, processes))(job, todo, ledger)
            finally:
                ledger.keep()
        missing = _missing(job, units)
        if missing and where.processes == 1:
            raise JobError(f"{out}: {len(missing)} of {len(units)} parts were not made. The same command goes on.")
        while missing:
            # Other processes of the launch make them, which ends this one too if one of them fails.
            time.sleep(0.2)
            missing = _missing(job, missing)
        ledger.keep(complete=True)
        _sweep(out)
        written = write_as(format, out)
    return _result(job, units, begun, sum(unit.rows for unit in todo), written)


def _missing(job: Job, units: Sequence[Unit]) -> list[Unit]:
    return [unit for unit in units if not job.is_done(unit)]


def one_after_another(job: Job, units: Sequence[Unit], show: Show, device: str | None = None) -> None:
    """The engine of one process."""
    with closing(Worker(job, device)) as worker:
        for unit in units:
            worker.do(unit, show.add)


def _sweep(out: Path) -> None:
    """Remove what workers that died have left."""
    for partial in out.glob(f".*{PARTIAL}"):
        partial.unlink(missing_ok=True)


def _engine(devices: Sequence[str], processes: int) -> Engine:
    places: list[str | None] = [device for device in (*devices,) or (None,) for _ in range(processes)]
    if len(places) == 1:
        return lambda job, units, show: one_after_another(job, units, show, places[0])
    return lambda job, units, show: work_in_processes(job, units, places, show.add, show.say)


class Ledger:
    """Passes on what is shown, and keeps the manifest up to date now and then."""

    def __init__(self, job: Job, units: Sequence[Unit], show: Show) -> None:
        self.job, self.units, self.show = job, units, show
        self._last = time.monotonic()
        self._rows: dict[int, int] = {}
        self._dim = 0

    def add(self, rows: int) -> None:
        """So many rows more are done."""
        self.show.add(rows)
        if time.monotonic() - self._last > MANIFEST_EVERY:
            self.keep()

    def say(self, message: str) -> None:
        """One line."""
        self.show.say(message)

    def keep(self, *, complete: bool = False) -> None:
        """Write the manifest of the parts that are there.

        Raises DataError for a part that is not whole, and where all are there and have no row.
        """
        for unit in self.units:
            if unit.number not in self._rows and self.job.is_done(unit):
                self._rows[unit.number] = self._counted(self.job.part(unit))
        self._last = time.monotonic()
        if complete and not any(self._rows.values()):
            rejected = _rejected(self.job, self.units)
            raise DataError(
                f"{self.job.out}: no vector, all {rejected[0]:,} rows are bad. The first:\n"
                + "\n".join(rejected[1][:3])
            )
        parts = tuple(
            Part(self.job.part(unit).name, rows) for unit in self.units if (rows := self._rows.get(unit.number, 0))
        )
        if parts:
            replace(self.job.manifest(self._dim), parts=parts, complete=complete).write(self.job.out)

    def _counted(self, part: Path) -> int:
        try:
            about = pq.read_metadata(part)
        except (pa.ArrowException, OSError) as problem:
            raise DataError(f"{part}: damaged ({problem}). Delete it; the same command makes it again.") from None
        self._dim = json.loads(about.metadata[b"bothways"])["dim"]
        return int(about.num_rows)


def _result(job: Job, units: Sequence[Unit], begun: float, done: int, written: Path) -> Encoded:
    """What is there now."""
    count, listed = _rejected(job, units)
    rows = sum(unit.rows for unit in units) - count + len(job.lost)
    return Encoded(job.out, rows, count, tuple(listed), done, time.monotonic() - begun, written)


def _rejected(job: Job, units: Sequence[Unit]) -> tuple[int, list[str]]:
    """How many rows could not be used, and the first of them in words; all of them go to one file."""
    files = [job.rejected(unit) for unit in units if job.rejected(unit).exists()]
    if not files and not job.lost:
        return 0, []
    count, listed = 0, []
    with whole(job.out / REJECTED) as path, path.open("w", encoding="utf-8") as all_of_them:
        for line in _lines(job, files):
            all_of_them.write(line)
            count += 1
            if count <= LISTED:
                listed.append(Rejected(**json.loads(line)).line)
    return count, listed


def _lines(job: Job, files: Sequence[Path]) -> Iterator[str]:
    for item in job.lost:
        yield json.dumps(asdict(item)) + "\n"
    for file in files:
        with file.open(encoding="utf-8") as lines:
            yield from lines


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Nobody else works in the folder. Raises ConfigError if somebody does."""
    jobs.refuse_others(out)
    new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / jobs.LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(f"{out}: another process is encoding into it. Wait for it, or name another --out.") from None
    try:
        yield
    finally:
        lock.release()
        if [item.name for item in out.iterdir()] in ([], [jobs.LOCK]):
            # Nothing was begun.
            (out / jobs.LOCK).unlink(missing_ok=True)
            if new:
                out.rmdir()
