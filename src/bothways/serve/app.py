"""The routes, and what stands before them: the key, the limits, the client that leaves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from bothways.encoding.front import TextEncoder
from bothways.serve.answer import body_of
from bothways.serve.batcher import Batcher, ComputeError
from bothways.serve.counting import Counted
from bothways.serve.inputs import Desk, Ready
from bothways.serve.keys import is_valid
from bothways.serve.metrics import Metrics
from bothways.serve.refusal import Refusal, busy
from bothways.serve.request import EmbeddingRequest
from bothways.serve.settings import Serve

EMBEDDINGS, MODELS, HEALTH, READY, METRICS = "/v1/embeddings", "/v1/models", "/health", "/ready", "/metrics"
PATHS = (EMBEDDINGS, MODELS, HEALTH, READY, METRICS)
STOPPED = "the encoder has stopped"
GONE = 499
"""nginx's number for a client that left: nobody reads it, but it is counted."""
CODES = {401: "invalid_api_key", 404: "unknown_url", 405: "method_not_allowed"}


@dataclass
class Served:
    """Everything that answers requests."""

    encoder: TextEncoder
    name: str
    settings: Serve
    keys: tuple[bytes, ...]
    metrics: Metrics
    batcher: Batcher
    desk: Desk
    reading: Executor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="reading"))
    """Parses and tokenises bodies: the tokenizer is that thread's alone, and uses all cores by itself."""
    made: int = field(default_factory=lambda: int(time.time()))
    inside: int = 0
    """Requests for vectors that are in the server."""
    given_up: int = 0
    """Those that the end of the server has cut off."""

    @classmethod
    def of(cls, encoder: TextEncoder, name: str, settings: Serve, keys: tuple[bytes, ...]) -> Served:
        """With its threads not started yet."""
        metrics = Metrics()
        batcher = Batcher(encoder, settings, metrics)
        return cls(encoder, name, settings, keys, metrics, batcher, Desk(encoder, settings, name))

    def check_key(self, request: Request) -> None:
        """Raises Refusal for a request without a valid key, where one is asked for."""
        if not is_valid(request.headers.get("authorization"), self.keys):
            message = 'A valid key is missing. Send it as "Authorization: Bearer KEY".'
            raise Refusal(401, message, code=CODES[401], headers={"www-authenticate": "Bearer"})

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place in the server. Raises Refusal if all are taken, or nothing is computed any more."""
        if not self.batcher.is_alive:
            raise busy(503, "The encoder has stopped computing, and the server must be restarted.", "encoder_stopped")
        if self.inside >= self.settings.max_requests:
            raise busy(429, f"{self.inside} requests are in the server, the most it takes. Try again.", "queue_full")
        self.inside += 1
        self.metrics.inside.inc()
        try:
            yield
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        finally:
            self.inside -= 1
            self.metrics.inside.dec()


def make_app(served: Served) -> FastAPI:
    """The routes of an encoder whose batcher is started."""
    # Without pages that load scripts from elsewhere.
    app = FastAPI(title=f"bothways serve {served.name}", docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_middleware(Counted, metrics=served.metrics, paths=PATHS)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _of_framework)
    app.add_exception_handler(Exception, _unexpected)
    schema = {"requestBody": {"required": True, "content": {"application/json": {"schema": _schema()}}}}

    @app.post(EMBEDDINGS, openapi_extra=schema)
    async def embeddings(request: Request) -> Response:
        """Vectors of texts."""
        served.check_key(request)
        _check_headers(request, served.settings.max_body_bytes)
        with served.place():
            return await _embeddings(served, request)

    @app.get(MODELS)
    async def models(request: Request) -> dict[str, Any]:
        """The one model that is served."""
        served.check_key(request)
        return {"object": "list", "data": [_model(served)]}

    @app.get(MODELS + "/{name:path}")
    async def model(name: str, request: Request) -> dict[str, Any]:
        """The same, by its name."""
        served.check_key(request)
        if name != served.name:
            raise Refusal(404, f'This server has the model "{served.name}".', "model", "model_not_found")
        return _model(served)

    @app.get(HEALTH)
    async def health() -> Response:
        """Whether texts are computed; if not, only a restart helps."""
        return _state("ok" if served.batcher.is_alive else STOPPED, served.batcher.is_alive)

    @app.get(READY)
    async def ready() -> Response:
        """Whether one more request would be taken in."""
        full = served.inside >= served.settings.max_requests
        if not served.batcher.is_alive:
            return _state(STOPPED, False)
        return _state("full" if full else "ready", not full)

    @app.get(METRICS)
    def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(served.metrics.page(), media_type=CONTENT_TYPE_LATEST)

    return app


async def _embeddings(served: Served, request: Request) -> Response:
    loop, until = asyncio.get_running_loop(), time.monotonic() + served.settings.request_timeout
    try:
        async with asyncio.timeout(until - time.monotonic()):
            body = await _body(request, served.settings.max_body_bytes)
    except TimeoutError:
        raise Refusal(408, "The body did not come in time.", code="timeout") from None
    except ClientDisconnect:
        return Response(status_code=GONE)

    async def computed() -> tuple[Ready, bytes]:
        ready = await loop.run_in_executor(served.reading, served.desk.read, body)
        vectors = await asyncio.wrap_future(served.batcher.submit(ready.items))
        return ready, await asyncio.to_thread(body_of, ready, vectors, served.encoder.settings, served.name)

    try:
        async with asyncio.timeout(until - time.monotonic()):
            found = await _unless_gone(request, computed())
    except TimeoutError:
        raise busy(503, f"No vectors within {served.settings.request_timeout:g} s.", "timeout") from None
    except ComputeError as problem:
        raise Refusal(500, f"{problem}.", code="compute_failed") from None
    if found is None:
        served.metrics.given_up.inc()
        return Response(status_code=GONE)
    ready, answer = found
    served.metrics.texts.inc(len(ready.places))
    served.metrics.tokens.inc(ready.tokens)
    served.metrics.overlong.inc(ready.overlong)
    return Response(answer, media_type="application/json")


async def _unless_gone(request: Request, work: Any) -> Any:
    """What is worked out, or None if the client leaves first, when the work is cancelled."""
    # Its body is read, so that all there is to come is that it leaves.
    work, gone = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else None
    finally:
        work.cancel()
        gone.cancel()


def _check_headers(request: Request, most: int) -> None:
    """Raises Refusal for what can be refused before a byte of the body is read."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(415, 'Send JSON, with "Content-Type: application/json".', code="unsupported_media_type")
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise Refusal(415, "Send the body as it is, not compressed.", code="unsupported_media_type")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and (len(length) > 18 or int(length) > most):
        raise _too_large(most)


async def _body(request: Request, most: int) -> bytes:
    """Raises Refusal as soon as it is longer."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise _too_large(most)
        parts.append(part)
    return b"".join(parts)


def _too_large(most: int) -> Refusal:
    # What still comes is not read, so that the connection is of no more use.
    headers = {"connection": "close"}
    return Refusal(413, f"The body has more than {most:,} bytes. Send fewer texts.", None, "body_too_large", headers)


def _model(served: Served) -> dict[str, Any]:
    return {"id": served.name, "object": "model", "created": served.made, "owned_by": "bothways"}


def _state(words: str, good: bool) -> Response:
    return JSONResponse({"status": words}, 200 if good else 503)


def _schema() -> dict[str, Any]:
    return EmbeddingRequest.model_json_schema()


async def _refused(_: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)
    return JSONResponse(refusal.as_json(), refusal.status, refusal.headers)


async def _of_framework(request: Request, problem: Exception) -> Response:
    """Paths and methods that there are not."""
    assert isinstance(problem, HTTPException)
    known = f"There are POST {EMBEDDINGS} and GET {', '.join(PATHS[1:])}."
    message = f"{request.method} {request.url.path[:80]}: {str(problem.detail).lower()}. {known}"
    code, headers = CODES.get(problem.status_code), problem.headers or {}
    return await _refused(request, Refusal(problem.status_code, message, code=code, headers=headers))


async def _unexpected(_: Request, problem: Exception) -> Response:
    """A defect of ours: the server's log has it, the client does not."""
    return await _refused(_, Refusal(500, "The server failed on this request.", code="internal_error"))
