"""A real HTTP server on loopback with real vectors behind it, some of them wrong: `from endpoints import ...`."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

Answer = Callable[[list[str]], Any]
"""Texts -> vectors, or a number: the status of an error, or a string: a body that is no JSON."""


@contextmanager
def endpoints(answers: Mapping[str, Answer], info: Mapping[str, Any] | None = None) -> Iterator[str]:
    """Serves each answer at /NAME/v1/embeddings and /NAME/embed; yields the address that /NAME goes after.

    `info` is what /NAME/info and each of /NAME/v1/models say.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(answers, dict(info or {})))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(answers: Mapping[str, Answer], info: dict[str, Any]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.endswith("/info") and info:
                self.send(200, json.dumps(info))
            elif self.path.endswith("/models") and info:
                self.send(200, json.dumps({"data": [{"id": name, **info} for name in info.get("models", ["tiny"])]}))
            else:
                self.send(404, '{"detail": "not found"}')

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            _, name, *_ = self.path.split("/")
            texts = asked["inputs"] if self.path.endswith("/embed") else asked["input"]
            found = answers[name](texts)
            if name == "locked" and self.headers["Authorization"] != "Bearer open sesame":
                self.send(401, '{"error": "no key"}')
            elif isinstance(found, int):
                self.send(found, '{"error": "out of memory"}')
            elif isinstance(found, str):
                self.send(200, found)
            elif self.path.endswith("/embed"):
                self.send(200, json.dumps(np.asarray(found).tolist()))
            else:
                self.send(200, json.dumps(_as_openai(np.asarray(found), asked)))

        def send(self, status: int, body: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            """Nothing on stderr."""

    return Handler


def _as_openai(found: np.ndarray, asked: Mapping[str, Any]) -> dict[str, Any]:
    def sent(row: np.ndarray) -> Any:
        if asked["encoding_format"] == "base64":
            return base64.b64encode(row.astype("<f4").tobytes()).decode()
        return row.tolist()

    rows: Sequence[dict[str, Any]] = [{"index": number, "embedding": sent(row)} for number, row in enumerate(found)]
    # Backwards: what counts is the index.
    return {"object": "list", "model": asked["model"], "data": list(reversed(rows))}
