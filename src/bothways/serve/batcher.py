"""The one thread that owns the encoder: takes what waits, computes it in one pass, gives each request its vectors."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future

import numpy as np
import torch
from jaxtyping import Float

from bothways import hardware
from bothways.encoding import Asked
from bothways.encoding.flow import Compute
from bothways.encoding.front import TextEncoder
from bothways.encoding.reading import Item
from bothways.errors import BothwaysError
from bothways.packing import Packing
from bothways.serve.metrics import Metrics
from bothways.serve.queue import ClosedError, Job, Queue, Taken
from bothways.serve.settings import Serve

LOG = logging.getLogger("bothways.serve")
PADDED_BATCHES = 4
"""Where rows are padded they are grouped by length, for which so many batches are looked at together."""
KNOWN_TEXT = "A text that the encoder is known to compute"


class ComputeError(BothwaysError):
    """A text that the model fails on; the request's others are lost with it, no other request's."""


class Batcher:
    """Computes the queue's texts in a thread of its own."""

    def __init__(self, encoder: TextEncoder, settings: Serve, metrics: Metrics) -> None:
        self.encoder, self.settings, self.metrics = encoder, settings, metrics
        self.queue = Queue()
        self.dim = encoder.dim
        asked = Asked(call="serve", tokens_per_batch=settings.tokens_per_batch, overflow=settings.overflow)
        self._compute = Compute(encoder, asked, self.dim)
        # Tokenised here and now: later the tokenizer is another thread's.
        self._known = Item(tuple(encoder.rows([KNOWN_TEXT], [("", "")])))
        self._started: Future[Packing] = Future()
        self._thread = threading.Thread(target=self._run, name="encoder", daemon=True)
        metrics.watch(lambda: self.queue.waiting()[0], lambda: self.queue.waiting()[1])

    def start(self) -> Packing:
        """Start, and compute a text; returns whether rows are packed. Raises what went wrong."""
        self._thread.start()
        return self._started.result()

    def submit(self, items: list[Item]) -> Future[np.ndarray]:
        """The vectors of some items, float32 (items, dim), when they are there; cancel it to have them skipped.

        Raises ComputeError when the batcher has ended.
        """
        job = Job(items, self.dim)
        try:
            self.queue.put(job)
        except ClosedError:
            raise ComputeError("the encoder has stopped") from None
        return job.future

    def stop(self, seconds: float) -> None:
        """Compute what waits, and end; what is not done in that time is given up."""
        waiting = self.queue.close()
        self._thread.join(seconds)
        for job in waiting:
            job.fail(ComputeError("the server was stopped"))

    @property
    def is_alive(self) -> bool:
        """Whether texts are computed."""
        return self._thread.is_alive()

    @torch.no_grad()
    def _run(self) -> None:
        taken: Taken = []
        try:
            with self.encoder.ready(), self.encoder.packing() as packing:
                self._vectors([self._known], packing)
                self._started.set_result(packing)
                device = self.encoder.device
                budget = hardware.choose_tokens_per_batch(self.settings.tokens_per_batch, device, 1).value
                budget *= 1 if packing.packed else PADDED_BATCHES
                while taken := self.queue.take(budget, self.settings.max_wait_ms / 1000):
                    self._answer(taken, packing)
        except BaseException as problem:
            if not self._started.done():
                self._started.set_exception(problem)
                return
            LOG.critical("the encoder has stopped computing", exc_info=problem)
            for job in {*self.queue.close(), *(job for job, _ in taken)}:
                job.fail(problem)

    def _answer(self, taken: Taken, packing: Packing) -> None:
        """Compute some texts; if that fails, each half of them, so that one does not fail the others."""
        taken = [(job, place) for job, place in taken if not job.is_over]
        if not taken:
            return
        items = [job.items[place] for job, place in taken]
        begun = time.perf_counter()
        try:
            vectors = self._vectors(items, packing)
        except Exception as problem:
            self.metrics.failures.inc()
            if len(taken) == 1:
                self._refuse(*taken[0], problem, packing)
                return
            half = len(taken) // 2
            self._answer(taken[:half], packing)
            self._answer(taken[half:], packing)
            return
        self.metrics.batch_seconds.observe(time.perf_counter() - begun)
        self.metrics.batch_texts.observe(len(items))
        self.metrics.batch_tokens.observe(sum(map(len, items)))
        for (job, place), vector in zip(taken, vectors, strict=True):
            if np.isfinite(vector).all():
                job.fill(place, vector)
            else:
                job.fail(ComputeError("the model gives a vector that is not finite"))

    def _refuse(self, job: Job, place: int, problem: Exception, packing: Packing) -> None:
        LOG.error("a text of %d tokens failed", len(job.items[place]), exc_info=problem)
        job.fail(ComputeError(f"the model fails on a text ({type(problem).__name__})"))
        # If it was not the text (after some errors a GPU computes nothing any more), nothing is right from here on.
        self._vectors([self._known], packing)

    def _vectors(self, items: list[Item], packing: Packing) -> Float[np.ndarray, "texts dim"]:
        found: Float[np.ndarray, "texts dim"] = self._compute.texts(items, packing, lambda count: None)
        return found
