"""Ctrl-C, or SIGTERM as schedulers send it, that lets a step end whole."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ONE_PRESS = 2.0
"""Seconds within which signals are one wish: a launcher hands on the Ctrl-C that the terminal has already sent."""


@contextmanager
def asked_to_stop() -> Iterator[threading.Event]:
    """The first Ctrl-C or SIGTERM sets the event; a later one does at once what it would do outside."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    since = 0.0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal since
        if not asked.is_set():
            since = time.monotonic()
            asked.set()
        elif time.monotonic() - since > ONE_PRESS:
            for other, handler in before.items():
                signal.signal(other, handler)
            signal.raise_signal(number)

    for number in SIGNALS:
        signal.signal(number, stop)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
