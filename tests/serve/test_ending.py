"""Property: signals under load: what is in the server is answered before it ends, and a restart goes on as before."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
from openai import OpenAI
from serving import Forks, Server, environment, metric, post, ready, until

from bothways import Encoder

CLIENTS = 12


def under_load(work: Callable[[int, Callable[[], bool]], Any], during: Callable[[], None]) -> list[Any]:
    """What `work` returns of every client; it goes on while what it is given says so, until `during` is over."""
    found: list[Any] = [None] * CLIENTS
    over = threading.Event()

    def one(number: int) -> None:
        found[number] = work(number, lambda: not over.is_set())

    threads = [threading.Thread(target=one, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        during()
    finally:
        over.set()
        for thread in threads:
            thread.join(120)
    return found


def test_sigterm_answers_what_is_in_the_server_and_ends_with_0(
    forks: Forks, folder: Path, encoder: Encoder, real_texts: list[str]
) -> None:
    server = forks.start(folder)
    url = f"{server.url}/v1/embeddings"
    # Each long enough that some of them are in the server at any moment.
    texts = [text[:400] for text in real_texts]
    requests = [texts[number * 17 : number * 17 + 40] for number in range(CLIENTS)]
    expected = [encoder.encode(texts) for texts in requests]

    def work(number: int, going: Callable[[], bool]) -> tuple[int, str]:
        """Answers that were right, and how it ended."""
        right = 0
        while True:
            try:
                answer = httpx.post(url, json={"input": requests[number]}, timeout=60)
            except httpx.ConnectError:
                return right, "refused"
            except httpx.HTTPError as problem:
                # Taken from the kernel's queue by nobody, or cut off.
                return right, type(problem).__name__
            assert answer.status_code == 200, answer.text
            found = [item["embedding"] for item in answer.json()["data"]]
            np.testing.assert_allclose(found, expected[number], rtol=0, atol=1e-5)
            right += 1

    def end() -> None:
        until(lambda: metric(server, "bothways_requests_inside") >= 6)
        begun = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert time.monotonic() - begun < 30

    found = under_load(work, end)
    assert sum(right for right, _ in found) >= 6
    # Who had no answer had not been let in: the connection was refused, or reset before anyone had accepted it.
    assert {how for _, how in found} <= {"refused", "ReadError"}, found
    assert server.said.endswith("serve: ended\n")
    assert "Traceback" not in server.said


def test_a_request_that_does_not_end_is_given_up_in_time(forks: Forks, folder: Path) -> None:
    import socket

    server = forks.start(folder, "--shutdown-timeout", 1)
    place = urlsplit(server.url)
    with socket.create_connection((place.hostname, place.port), timeout=20) as connection:
        head = "POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
        connection.sendall(head.encode())
        until(lambda: metric(server, "bothways_requests_inside") == 1)
        begun = time.monotonic()
        server.signal(signal.SIGINT)
        assert server.wait() == 0
        assert time.monotonic() - begun < 15
    assert server.said.endswith("serve: ended, 1 requests were given up\n")


def test_a_pass_that_does_not_end_is_given_up_in_time(forks: Forks, folder: Path) -> None:
    server = forks.start(folder, "--shutdown-timeout", 1, PLANTED="slow")
    url, found = server.url, []

    def ask() -> None:
        try:
            found.append(httpx.post(f"{url}/v1/embeddings", json={"input": "a text"}, timeout=60).status_code)
        except httpx.TransportError as problem:
            found.append(type(problem).__name__)

    client = threading.Thread(target=ask)
    client.start()
    until(lambda: metric(server, "bothways_requests_inside") == 1)
    begun = time.monotonic()
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    assert time.monotonic() - begun < 20
    client.join(20)
    assert found in ([500], ["RemoteProtocolError"], ["ReadError"])
    assert server.said.endswith("serve: ended, 1 requests were given up\n")


def test_killed_and_started_again_under_load(forks: Forks, folder: Path, encoder: Encoder) -> None:
    """SIGKILL: a client that tries again sees connection errors alone, and then the right vectors."""
    servers = [forks.start(folder)]
    port = urlsplit(servers[0].url).port
    texts = [[f"client {number} says {word}" for word in ("this", "that")] for number in range(CLIENTS)]
    expected = [encoder.encode(request) for request in texts]

    def work(number: int, going: Callable[[], bool]) -> tuple[int, set[str]]:
        right, errors, last = 0, set(), False
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            # Once more after all is over.
            while going() or not last:
                last = not going()
                try:
                    answer = client.post("/v1/embeddings", json={"input": texts[number]})
                except httpx.TransportError as problem:
                    errors.add(type(problem).__name__)
                    time.sleep(0.05)
                    continue
                assert answer.status_code == 200, answer.text
                found = [item["embedding"] for item in answer.json()["data"]]
                np.testing.assert_allclose(found, expected[number], rtol=0, atol=1e-5)
                right += 1
        return right, errors

    def kill_and_start() -> None:
        for _ in range(2):
            time.sleep(0.3)
            servers[-1].end()
            servers.append(forks.start(folder, port=port))
            assert servers[-1].url == f"http://127.0.0.1:{port}"
            until(lambda: metric(servers[-1], "bothways_texts_total") >= 2 * CLIENTS)

    found = under_load(work, kill_and_start)
    assert all(right >= 3 for right, _ in found), found
    seen = set().union(*(errors for _, errors in found))
    assert seen
    assert seen <= {"ConnectError", "ReadError", "RemoteProtocolError", "WriteError"}, seen
    assert servers[0].code == servers[1].code == -signal.SIGKILL
    with OpenAI(base_url=f"{servers[-1].url}/v1", api_key="-") as client:
        again = client.embeddings.create(model="tiny", input=texts[0])
    np.testing.assert_allclose([item.embedding for item in again.data], expected[0], rtol=0, atol=1e-5)
    servers[-1].end()


def test_the_program_itself_ends_with_0(folder: Path, tmp_path: Path) -> None:
    """Not forked: as it is started from a shell, with nothing on stdout."""
    file = tmp_path / "said"
    words = [sys.executable, "-m", "bothways", "serve", str(folder), "--port", "0", "--device", "cpu"]
    with file.open("w") as said:
        process = subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=said, text=True)
    try:
        url = ready(file, 120)
        assert httpx.get(f"{url}/ready").json() == {"status": "ready"}
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=60)[0] == ""
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()
    lines = file.read_text().splitlines()
    assert [line.split(":")[0] for line in lines] == ["serve"] * 3, lines


def test_a_model_that_is_lost_is_seen_in_its_health(forks: Forks, folder: Path) -> None:
    server: Server = forks.start(folder, PLANTED="lost")
    assert httpx.get(f"{server.url}/health").status_code == 200
    lost = post(server, {"input": "a text"})
    assert (lost.status_code, lost.json()["error"]["code"]) == (500, "compute_failed")
    until(lambda: httpx.get(f"{server.url}/health").status_code == 503)
    assert httpx.get(f"{server.url}/ready").status_code == 503
    stopped = post(server, {"input": "a text"})
    assert (stopped.status_code, stopped.json()["error"]["code"]) == (503, "encoder_stopped")
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
