"""What a process does in tests of the staff: no encoder, but deaths and errors as the job's `opening` says."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from bothways.corpus.job import Encode, Job
from bothways.corpus.staff import _end_with_parent
from bothways.corpus.worker import Done
from bothways.errors import DataError


def job(out: Path, **orders: Any) -> Job:
    """orders: die (unit), times (how often), how (a signal's name, "exit", "data" or "bug")."""
    return Job(out, "none", "", orders, Encode(), (), {})


def work(connection: Any, job: Job, device: str | None, threads: int) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            unit = connection.recv()
        except EOFError:
            return
        tries = job.out / f"tries-{unit.number}"
        with tries.open("a") as file:
            file.write(f"{os.getpid()} {device} {threads}\n")
        orders = job.opening
        if unit.number == orders.get("die") and len(tries.read_text().splitlines()) <= orders.get("times", 1):
            connection.send(1)
            if orders["how"] == "exit":
                os._exit(3)
            if orders["how"] in ("data", "bug"):
                error = DataError("rows.txt line 7: it is empty.") if orders["how"] == "data" else None
                connection.send((error, "Traceback: it broke"))
                continue
            if orders["how"] == "wait":
                time.sleep(60)
            os.kill(os.getpid(), getattr(signal, orders["how"]))
        connection.send(unit.rows)
        connection.send(Done(unit.number, unit.rows, 0))


if __name__ == "__main__":
    # A job whose workers wait, to be killed.
    from bothways.corpus.inputs import Unit
    from bothways.corpus.staff import work_in_processes

    waiting = job(Path(sys.argv[1]), die=0, how="wait")
    work_in_processes(waiting, [Unit(0, 0, 5, 0)], [None, None], print, print, work=work)
