"""What the server counts, in Prometheus' own format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TEXTS = tuple(2**power for power in range(12))
TOKENS = tuple(2**power for power in range(4, 18))


class Metrics:
    """Of one server: a registry of its own, so that two in one process do not meet."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry, "namespace": "bothways"}
        self.requests = Counter("requests", "Requests that were answered.", ("path", "status"), **own)
        self.seconds = Histogram("request_seconds", "From first line to last byte.", ("path",), buckets=SECONDS, **own)
        self.inside = Gauge("requests_inside", "Requests for vectors that are in the server.", **own)
        self.texts = Counter("texts", "Texts that were answered with a vector.", **own)
        self.tokens = Counter("tokens", "Tokens of those texts.", **own)
        self.overlong = Counter("overlong_texts", "Texts with more tokens than the encoder reads.", **own)
        self.batch_texts = Histogram("batch_texts", "Texts computed at once.", buckets=TEXTS, **own)
        self.batch_tokens = Histogram("batch_tokens", "Tokens computed at once.", buckets=TOKENS, **own)
        self.batch_seconds = Histogram("batch_seconds", "What that took.", buckets=SECONDS, **own)
        self.failures = Counter("batch_failures", "Batches that failed and were split, down to single texts.", **own)
        self.given_up = Counter(
            "cancelled_requests", "Requests whose client left before its vectors were there.", **own
        )
        self.waiting_texts = Gauge("waiting_texts", "Texts that wait for the model.", **own)
        self.waiting_tokens = Gauge("waiting_tokens", "Tokens that wait for the model.", **own)

    def watch(self, texts: Callable[[], float], tokens: Callable[[], float]) -> None:
        """Where the length of the queue is read from."""
        self.waiting_texts.set_function(texts)
        self.waiting_tokens.set_function(tokens)

    def page(self) -> bytes:
        """What `/metrics` shows."""
        return generate_latest(self.registry)
