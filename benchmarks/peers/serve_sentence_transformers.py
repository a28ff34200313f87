"""sentence-transformers behind a route as people write it: `encode` in FastAPI's threads, or one request at a time."""

from __future__ import annotations

import base64
import contextlib
import socket
import sys
import threading
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer

from bothways.bidirectional.probe import probe

THREADS, ALONE = "threads", "one at a time"


class Asked(BaseModel):
    """What is used of a request."""

    input: list[str]


def main(folder: str, kind: str) -> None:
    """Serve on a free port, which the first line on stdout says."""
    model = SentenceTransformer(folder, device="cpu")
    probe(model[0].auto_model).require_bidirectional()
    lock = threading.Lock() if kind == ALONE else contextlib.nullcontext()
    app = FastAPI()

    @app.post("/v1/embeddings")
    def embeddings(asked: Asked) -> dict[str, Any]:
        with lock:
            vectors = model.encode(asked.input, show_progress_bar=False)
        rows = [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in vectors]
        data = [{"object": "embedding", "index": number, "embedding": row} for number, row in enumerate(rows)]
        return {"object": "list", "data": data, "model": "peer", "usage": {"prompt_tokens": 0, "total_tokens": 0}}

    with socket.create_server(("127.0.0.1", 0)) as place:
        print(f"ready: peer on http://127.0.0.1:{place.getsockname()[1]}/v1", flush=True)
        uvicorn.Server(uvicorn.Config(app, http="h11", loop="asyncio", log_level="warning")).run(sockets=[place])


if __name__ == "__main__":
    main(*sys.argv[1:])
