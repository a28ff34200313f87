"""Texts of all requests, on their way to the model."""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress

import numpy as np
from jaxtyping import Float

from bothways.encoding.reading import Item

Vectors = Float[np.ndarray, "texts dim"]


class ClosedError(Exception):
    """Nothing is taken in any more."""


class Job:
    """The texts of one request, and the vectors that are there so far."""

    def __init__(self, items: list[Item], dim: int) -> None:
        self.items = items
        self.next = 0
        """The first text that still waits."""
        self.waiting_tokens = sum(map(len, items))
        self.missing = len(items)
        self.vectors: Vectors = np.empty((len(items), dim), dtype=np.float32)
        self.future: Future[Vectors] = Future()
        """Cancelled by who no longer wants them."""

    def fill(self, place: int, vector: Float[np.ndarray, " dim"]) -> None:
        """One vector; with the last one the job is done."""
        self.vectors[place] = vector
        self.missing -= 1
        if not self.missing:
            # It may be cancelled at any moment.
            with suppress(InvalidStateError):
                self.future.set_result(self.vectors)

    def fail(self, problem: BaseException) -> None:
        """None of its vectors is of use without the others."""
        with suppress(InvalidStateError):
            self.future.set_exception(problem)

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for its vectors any more."""
        return self.future.done()


Taken = list[tuple[Job, int]]
"""Jobs, and which of their texts."""


class Queue:
    """Jobs take turns, a text each, so that a small one does not wait for all of a large one."""

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()
        self._change = threading.Condition()
        self._closed = False

    def put(self, job: Job) -> None:
        """Let a job wait. Raises ClosedError once the queue is closed."""
        with self._change:
            if self._closed:
                raise ClosedError
            self._jobs.append(job)
            self._change.notify()

    def take(self, tokens: int, max_wait: float) -> Taken:
        """The next texts, about so many tokens of them; none once the queue is closed and empty.

        Waits for the first text, and `max_wait` seconds for more if it does not have so many tokens.
        """
        with self._change:
            while not self._drop_over():
                if self._closed:
                    return []
                self._change.wait()
            until = time.monotonic() + max_wait
            while not self._closed and (left := until - time.monotonic()) > 0 and self._waiting()[1] < tokens:
                self._change.wait(left)
            return self._pick(tokens)

    def close(self) -> list[Job]:
        """Nothing new is taken in; returns what waits, which may still be taken out."""
        with self._change:
            self._closed = True
            self._change.notify_all()
            return list(self._jobs)

    def waiting(self) -> tuple[int, int]:
        """Texts and tokens that wait."""
        with self._change:
            return self._waiting()

    def _waiting(self) -> tuple[int, int]:
        jobs = [job for job in self._jobs if not job.is_over]
        return sum(len(job.items) - job.next for job in jobs), sum(job.waiting_tokens for job in jobs)

    def _drop_over(self) -> bool:
        """Forget jobs that nobody waits for; whether others are there."""
        while self._jobs and self._jobs[0].is_over:
            self._jobs.popleft()
        return bool(self._jobs)

    def _pick(self, tokens: int) -> Taken:
        taken: Taken = []
        filled = 0
        while self._drop_over():
            job = self._jobs[0]
            size = len(job.items[job.next])
            filled += size
            if taken and filled > tokens:
                break
            taken.append((job, job.next))
            job.next += 1
            job.waiting_tokens -= size
            self._jobs.popleft()
            if job.next < len(job.items):
                self._jobs.append(job)
        return taken
