"""`bothways serve` under many clients: latency and throughput, beside sentence-transformers behind the same route."""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.beside import OURS, SAME, turn
from benchmarks.encode import SENTENCE_TRANSFORMERS, TOKENS, VOCABULARY
from benchmarks.frame import ROOT, Findings, say
from benchmarks.peers.condition import CPU_SHAPES, LLAMA, TINY
from benchmarks.peers.passages import SAMPLE, TEXTS, Passages
from bothways.evaluation.tables import markdown

CONDITION = "one-text-fp32"
KINDS = ("threads", "one at a time")
"""How a route calls sentence-transformers; the faster is compared."""
READY = re.compile(r"ready: .* on (http://\S+)\n")
SECONDS = 300
"""In which a server is to be ready."""
WARM = 2
"""Requests of each client in the first round, which is not timed."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """How much is measured."""
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds of every variant")
    parser.add_argument("--clients", type=int, default=64, help="clients at once")
    parser.add_argument("--requests", type=int, default=6, help="requests of each client in a round, one text each")
    parser.add_argument("--tiny", action="store_true", help="a narrow model: the figures mean nothing, but it runs")


def measure(options: argparse.Namespace) -> Findings:
    """Every server is there all the time; one after the other is asked, in turn."""
    if min(options.rounds, options.clients, options.requests) < 1:
        raise SystemExit("benchmarks serve: --rounds, --clients and --requests: 1 or more of each.")
    condition = conditioned(options)
    variants = {OURS: None, **{f"{SENTENCE_TRANSFORMERS}, {kind}": kind for kind in KINDS}}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as given, ExitStack() as stack:
        folder = Path(given)
        encoder = made(condition, folder)
        texts = [json.loads(line) for line in (folder / TEXTS).read_text(encoding="utf-8").splitlines()]
        # All start at once, and then each is waited for.
        servers = {
            name: stack.enter_context(served(name, command(encoder, kind), folder)) for name, kind in variants.items()
        }
        urls = {name: url_of(name, *server) for name, server in servers.items()}
        same_vectors(condition, {name: sample(url, texts[:SAMPLE]) for name, url in urls.items()})
        for number in range(options.rounds + 1):
            count = options.requests if number else min(WARM, options.requests)
            for name in turn(list(urls), number):
                found = asyncio.run(asked(urls[name], texts, options.clients, count))
                rows.append({"variant": name, "round": number, **found})
                say(f"serve round {number}: {name} {found['seconds']:.2f} s for {len(found['latencies'])} requests")
        batches = batch_sizes(urls[OURS])
    observed = {CONDITION: {**summary(rows, sum(condition.lengths())), **batches, "clients": options.clients}}
    return Findings(rows, {}, observed)


def conditioned(options: argparse.Namespace) -> Passages:
    """Texts of log-normal lengths, as many as are asked for in a round, and a model that reads them in float32."""
    shape = {**CPU_SHAPES["vocab-32k"], "vocab_size": VOCABULARY}
    if options.tiny:
        shape |= {**TINY, "kind": LLAMA["kind"], "head_dim": 10, "intermediate_size": 56}
    return Passages(CONDITION, shape, "full", options.clients * options.requests, TOKENS, "cpu")


def made(condition: Passages, folder: Path) -> Path:
    """A stock folder, which every server opens, and the texts beside it."""
    from bothways import convert

    condition.make(folder)
    encoder = convert(folder, dtype="float32", device="cpu", max_length=TOKENS)
    encoder.save_pretrained(folder / "encoder", head=False)
    return folder / "encoder"


def command(encoder: Path, kind: str | None) -> list[str]:
    """What starts a server: ours, or the peer of a kind."""
    if kind is None:
        return ["-m", "bothways", "serve", str(encoder), "--port", "0", "--device", "cpu"]
    return ["-m", "benchmarks.peers.serve_sentence_transformers", str(encoder), kind]


@contextmanager
def served(name: str, words: Sequence[str], folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A server in a process of its own, and the file with what it says."""
    file = folder / f"{name}.said"
    path = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"}
    with file.open("w") as said:
        process = subprocess.Popen([sys.executable, *words], cwd=ROOT, env=environment, stdout=said, stderr=said)
    try:
        yield process, file
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def url_of(name: str, process: subprocess.Popen[bytes], file: Path) -> str:
    """Where it says that it is ready. Exits with what it said if it never is."""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until and process.poll() is None:
        if found := READY.search(file.read_text(encoding="utf-8")):
            return found[1]
        time.sleep(0.1)
    raise SystemExit(f"benchmarks serve: {name} is not ready:\n{file.read_text(encoding='utf-8')}")


def sample(url: str, texts: Sequence[str]) -> dict[str, Any]:
    """Some vectors of a server."""
    import httpx
    import numpy as np

    answer = httpx.post(f"{url}/embeddings", json=_body(texts), timeout=SECONDS).raise_for_status()
    rows = [np.frombuffer(base64.b64decode(item["embedding"]), dtype="<f4") for item in answer.json()["data"]]
    return {"sample": [[float(number) for number in row] for row in rows]}


def same_vectors(condition: Passages, samples: Mapping[str, Mapping[str, Any]]) -> None:
    """Exits unless all give the same, so that the work is the same."""
    for name, facts in samples.items():
        if unlike := condition.unlike(facts, samples[OURS], SAME):
            raise SystemExit(f"benchmarks serve: {name} {unlike}: not the same work.")


async def asked(url: str, texts: Sequence[str], clients: int, count: int) -> dict[str, Any]:
    """Clients that each send one request after the other; a status but 200 ends the benchmark."""
    import httpx

    latencies: list[float] = []
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=clients)
    async with httpx.AsyncClient(timeout=SECONDS, limits=limits) as connection:

        async def client(number: int) -> None:
            for text in texts[number * count : (number + 1) * count]:
                begun = time.perf_counter()
                answer = await connection.post(f"{url}/embeddings", json=_body([text]))
                if answer.status_code != 200:
                    raise SystemExit(f"benchmarks serve: {url} answered {answer.status_code}: {answer.text[:300]}")
                latencies.append(time.perf_counter() - begun)

        begun = time.perf_counter()
        await asyncio.gather(*map(client, range(clients)))
        return {"seconds": time.perf_counter() - begun, "latencies": [round(one, 5) for one in latencies]}


def _body(texts: Sequence[str]) -> dict[str, Any]:
    return {"input": list(texts), "encoding_format": "base64"}


def batch_sizes(url: str) -> dict[str, float]:
    """Texts that our server computed at once, on average."""
    import httpx

    page = httpx.get(f"{url.removesuffix('/v1')}/metrics", timeout=SECONDS).text
    found = dict(re.findall(r"^bothways_batch_texts_(sum|count) (\S+)$", page, re.MULTILINE))
    return {"texts of a batch": float(found["sum"]) / float(found["count"])}


def summary(rows: Sequence[Mapping[str, Any]], tokens: int) -> dict[str, Any]:
    """Of the timed rounds: the median of their seconds, and what share of all requests was answered by then."""
    timed = [row for row in rows if row["round"]]
    found: dict[str, Any] = {name: {} for name in ("seconds", "texts/s", "tokens/s", "p50", "p99")}
    for name in dict.fromkeys(row["variant"] for row in timed):
        mine = [row for row in timed if row["variant"] == name]
        seconds = statistics.median(row["seconds"] for row in mine)
        latencies = sorted(one for row in mine for one in row["latencies"])
        found["seconds"][name] = seconds
        found["texts/s"][name] = len(mine[0]["latencies"]) / seconds
        found["tokens/s"][name] = tokens / seconds
        found["p50"][name] = statistics.median(latencies)
        found["p99"][name] = latencies[min(len(latencies) - 1, int(0.99 * len(latencies)))]
    return found


def table(found: Mapping[str, Any]) -> str:
    """Every variant: throughput, and how long a request takes."""
    figures = found["observed"][CONDITION]
    return markdown(
        [
            {
                "server": name,
                "texts/s": f"{rate:.1f} ({rate / figures['texts/s'][OURS]:.2f}x)",
                "tokens/s": f"{figures['tokens/s'][name]:,.0f}",
                "p50, s": f"{figures['p50'][name]:.2f}",
                "p99, s": f"{figures['p99'][name]:.2f}",
            }
            for name, rate in figures["texts/s"].items()
        ]
    )
