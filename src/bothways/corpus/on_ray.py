"""The engine for many machines: units go to actors of Ray Data. One that dies is started again, its unit too."""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, redirect_stdout
from typing import Any

from bothways.corpus.inputs import Unit
from bothways.corpus.job import Job
from bothways.corpus.remote import Remote, rows_of, settle
from bothways.corpus.showing import Show
from bothways.errors import ConfigError, JobError

STORE_BYTES = 100 << 20
"""Memory for objects of a cluster of our own: what goes through it are numbers of units."""
SECONDS_FOR_AN_ANSWER = 10.0


class OnRay:
    """Does units by actors of Ray: on the cluster at an address, else on one of its own on this machine.

    The address is `address`, else what RAY_ADDRESS says. Ray that is already initialised is used as it is. `device` is
    "cpu", "cuda" (a GPU for each actor), or None: a GPU where the cluster has some, else a CPU.
    """

    def __init__(self, actors: int = 1, address: str | None = None, device: str | None = None) -> None:
        """Raises ConfigError if ray is not installed, and for a device that Ray does not give out."""
        if importlib.util.find_spec("ray") is None:
            raise ConfigError("encode on Ray needs the package `ray`. Install it: pip install 'bothways[ray]'.")
        if device not in (None, "cpu", "cuda"):
            raise ConfigError(f'encode on Ray: device "{device}". Ray gives each actor its GPU: use cuda, or cpu.')
        self.actors, self.address, self.device = actors, address, device

    def __call__(self, job: Job, units: Sequence[Unit], show: Show) -> None:
        """Do the units. Raises what a unit raised, and JobError for one over which three actors died."""
        if not units:
            return
        with _connected(self.address), _quiet():
            import ray

            try:
                # Closed, its actors end: those of a cluster that is not ours would go on after an error.
                with closing(self._answers(job, units)) as answers:
                    settle(answers, job, units, show)
            except ray.exceptions.RayError as problem:
                first = next(filter(str.strip, str(problem).splitlines()), "")
                raise JobError(
                    f"Ray gave up ({type(problem).__name__}: {first}). The same command goes on with the units that "
                    "are left."
                ) from None

    def _answers(self, job: Job, units: Sequence[Unit]) -> Generator[dict[str, Any]]:
        import ray
        from ray.data import ActorPoolStrategy, DataContext

        context = DataContext.get_current().copy()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        gpu = self.device == "cuda" or (self.device is None and ray.cluster_resources().get("GPU", 0) > 0)
        with DataContext.current(context):
            # A block of its own for each unit: it is given out, answered and done again alone.
            waiting = ray.data.from_items(rows_of(units), override_num_blocks=len(units))
            answers = waiting.map_batches(
                Remote,
                fn_constructor_args=(job, self.device),
                batch_size=1,
                batch_format="numpy",
                # It begins with those for which there is room, and dead ones are started again, which is Ray's default.
                compute=ActorPoolStrategy(size=min(self.actors, len(units)), max_tasks_in_flight_per_actor=1),
                num_gpus=1 if gpu else None,
                num_cpus=None if gpu else 1,
            )
            yield from answers.iter_rows()


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Ray, initialised; left again if it was not before. Raises ConfigError if there is no cluster at the address."""
    # Before Ray is imported: then it reads them.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Its core writes to stderr whatever it deems an error, such as how Ray Data starts its actors.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    own: dict[str, Any] = {}
    if address == "local":
        # Ray takes the loopback address at its word only where it expects no cluster, as on macOS.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        own = {"_node_ip_address": "127.0.0.1", "include_dashboard": False, "object_store_memory": STORE_BYTES}
    import ray

    if ray.is_initialized():
        yield
        return
    _knock(address)
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except ConnectionError as problem:
        raise _nobody(address, problem) from None
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raises ConfigError if nobody listens at HOST:PORT, of which Ray itself would need minutes to be sure."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "/" not in host:
        try:
            socket.create_connection((host.strip("[]"), int(port)), SECONDS_FOR_AN_ANSWER).close()
        except OSError as problem:
            raise _nobody(address, problem) from None


def _nobody(address: str, problem: OSError) -> ConfigError:
    return ConfigError(
        f"no Ray cluster answers at {address} ({problem}). Start one (`ray start --head`), or leave --ray-address and "
        "RAY_ADDRESS out, and one is started on this machine."
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray Data says how each of its steps went; what a job has to say is said by itself. stdout is for data.

    That a worker died, which Ray prints with its machine and the cause, goes to stderr.
    """
    import ray.data  # noqa: F401

    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        logger.setLevel(level)
