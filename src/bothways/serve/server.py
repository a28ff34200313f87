"""An encoder on a socket, until a signal says that it is enough."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from bothways.encoding.front import TextEncoder
from bothways.errors import ConfigError
from bothways.serve.app import Served, make_app
from bothways.serve.keys import read_keys
from bothways.serve.settings import Serve

SIGNALS = (signal.SIGINT, signal.SIGTERM)
BATCH_SECONDS = 5.0
"""Left to the pass that is being computed when every client has its answer, or has been given up."""


def run(
    encoder: str | Path,
    settings: Serve,
    load: Callable[[], TextEncoder],
    tell: Callable[[str], None],
) -> bool:
    """Serve until SIGTERM or SIGINT, then finish what is in the server; whether nothing is computed any more.

    Raises ConfigError for a key that is not there or an address that cannot be taken, before `load` opens the encoder.
    """
    keys = read_keys(settings)
    name = settings.served_name or (Path(encoder).resolve().name if Path(encoder).is_dir() else str(encoder))
    if not settings.is_loopback:
        who = "with a key" if keys else "without a key, everyone may use it"
        tell(f"warning: {settings.host} is open to the network, {who}, and not encrypted.")
    with _bound(settings) as place:
        served = Served.of(load(), name, settings, keys)
        packing = served.batcher.start()
        tell(f"{name}: {served.encoder.dim} numbers, {served.encoder.dtype} on {served.encoder.device}, {packing.why}")
        config = uvicorn.Config(
            make_app(served),
            http="h11",
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=max(1, round(settings.shutdown_timeout)),
        )
        host, port = place.getsockname()[:2]
        where = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
        with _not_killed():
            _Server(config, lambda: tell(f"ready: {name} on {where}")).run(sockets=[place])
        served.batcher.stop(BATCH_SECONDS)
        served.reading.shutdown(wait=False, cancel_futures=True)
        given_up = f", {served.given_up} requests were given up" if served.given_up else ""
        tell(f"ended{given_up}")
        return not served.batcher.is_alive


class _Server(uvicorn.Server):
    """Says when it answers."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()


@contextmanager
def _bound(settings: Serve) -> Iterator[socket.socket]:
    """A socket at the address, which nobody can connect to before the server listens."""
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        place = socket.socket(family, kind, protocol)
    except OSError as problem:
        raise ConfigError(f'host="{settings.host}" cannot be listened on: {problem}. Name another.') from None
    with place:
        try:
            if os.name == "posix":
                # A server that is started again takes its port at once.
                place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            place.bind(address)
        except OSError as problem:
            where = f"{settings.host}:{settings.port}"
            raise ConfigError(f"{where} cannot be listened on: {problem}. Use another --port, or 0.") from None
        yield place


@contextmanager
def _not_killed() -> Iterator[None]:
    """uvicorn sends itself the signal again that has ended it; here that is the regular end, with exit code 0."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {one: signal.signal(one, lambda *_: None) for one in SIGNALS}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
