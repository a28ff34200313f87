"""Contract: what is limited is limited, each with its status, and what a server is started with is checked."""

from __future__ import annotations

import http.client
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families
from serving import Forks, Server, metric, post, until

from bothways.cli import main
from bothways.errors import ConfigError
from bothways.serve import Serve

KEY, OTHER = "a-secret-key", "the-key-after-it"
BEARER = {"authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def narrow(forks: Forks, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """With small limits and keys."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"\n{OTHER}\n")
    limits = ("--max-inputs", 3, "--max-body-bytes", 3000, "--request-timeout", 2, "--max-requests", 2)
    flags = ("--overflow", "error", "--served-name", "a name", "--api-key-env", "SERVE_KEY", "--api-key-file", keys)
    return forks.start(folder, *limits, *flags, SERVE_KEY=KEY)


def test_a_key_is_asked_for(narrow: Server) -> None:
    wrong = ({}, {"authorization": KEY}, {"authorization": "Bearer"}, {"authorization": f"Bearer {KEY}x"})
    for headers in (*wrong, {"authorization": f"Basic {KEY}"}, {"authorization": b"Bearer \xff\xe9"}):
        answer = post(narrow, {"input": "a text"}, headers=headers)
        assert answer.status_code == 401, headers
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert httpx.get(f"{narrow.url}/v1/models", headers=headers).status_code == 401
    for key in (KEY, OTHER):
        with OpenAI(base_url=f"{narrow.url}/v1", api_key=key, max_retries=0) as client:
            assert len(client.embeddings.create(model="a name", input="a text").data) == 1
    with (
        OpenAI(base_url=f"{narrow.url}/v1", api_key="guessed", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()
    for path in ("/health", "/ready", "/metrics"):
        assert httpx.get(narrow.url + path).status_code == 200
    assert KEY not in narrow.said


def test_inputs_bodies_and_lengths_are_limited(narrow: Server) -> None:
    assert post(narrow, {"input": ["a"] * 3}, headers=BEARER).status_code == 200
    many = post(narrow, {"input": ["a"] * 4}, headers=BEARER)
    assert (many.status_code, many.json()["error"]["code"]) == (400, "too_many_inputs")
    long = post(narrow, {"input": ["short", "every word counts " * 150]}, headers=BEARER)
    assert (long.status_code, long.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert '"input[1]" has more than 256 tokens' in long.json()["error"]["message"]
    large = post(narrow, {"input": "a" * 3000}, headers=BEARER)
    assert (large.status_code, large.json()["error"]["code"]) == (413, "body_too_large")

    def parts() -> object:
        yield b'{"input": "'
        for _ in range(100):
            yield b"a" * 100

    headers = {**BEARER, "content-type": "application/json"}
    try:
        unannounced = httpx.post(f"{narrow.url}/v1/embeddings", content=parts(), headers=headers)
        assert unannounced.status_code == 413
    except (httpx.WriteError, httpx.ReadError):
        # What is still sent after the answer meets a closed connection.
        pass
    assert post(narrow, {"input": "a"}, headers=BEARER).status_code == 200


def test_a_full_server_says_so_and_a_body_that_does_not_come_is_given_up(narrow: Server) -> None:
    place = urlsplit(narrow.url)
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
    slow = [socket.create_connection((place.hostname, place.port), timeout=20) for _ in range(2)]
    try:
        for connection in slow:
            connection.sendall(head.encode())
        while httpx.get(f"{narrow.url}/ready").status_code != 503:
            pass
        assert httpx.get(f"{narrow.url}/ready").json() == {"status": "full"}
        assert httpx.get(f"{narrow.url}/health").status_code == 200
        full = post(narrow, {"input": "a text"}, headers=BEARER)
        assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
        assert full.headers["retry-after"] == "1"
        for connection in slow:
            assert connection.recv(65536).startswith(b"HTTP/1.1 408 ")
    finally:
        for connection in slow:
            connection.close()
    # The client tries again by itself.
    with OpenAI(base_url=f"{narrow.url}/v1", api_key=KEY) as client:
        assert len(client.embeddings.create(model="a name", input="a text").data) == 1


def test_vectors_that_take_too_long_are_given_up(forks: Forks, folder: Path, real_texts: list[str]) -> None:
    hasty = forks.start(folder, "--request-timeout", 1)
    large = [f"{number} {' '.join(real_texts[number : number + 3])}" for number in range(2048)]
    answer = post(hasty, {"input": large})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "timeout")
    assert "No vectors within 1 s" in answer.json()["error"]["message"]
    until(lambda: post(hasty, {"input": "a text"}).status_code == 200)
    assert metric(hasty, "bothways_batch_texts_sum") < len(large)
    hasty.end()


def test_metrics_parse_and_count(narrow: Server) -> None:
    for _ in range(3):
        post(narrow, {"input": "a text"}, headers=BEARER)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda path: httpx.get(narrow.url + path), ["/nowhere", "/nowhere/else"]))
    answer = httpx.get(f"{narrow.url}/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    counts = {
        (sample.labels["path"], sample.labels["status"]): sample.value
        for sample in families["bothways_requests"].samples
        if sample.name == "bothways_requests_total"
    }
    assert counts["/v1/embeddings", "200"] >= 3
    assert counts["other", "404"] == 2
    assert all(family.documentation for family in families.values())
    assert {"bothways_request_seconds", "bothways_texts", "bothways_tokens", "bothways_batch_tokens"} <= set(families)
    assert {"bothways_waiting_texts", "bothways_requests_inside", "bothways_batch_failures"} <= set(families)


def test_the_schema_of_a_request_is_published(server: Server) -> None:
    schema = httpx.get(f"{server.url}/openapi.json").json()
    post = schema["paths"]["/v1/embeddings"]["post"]
    fields = post["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert {"input", "model", "dimensions", "instruction", "input_type", "prompt_name"} <= set(fields)


def test_a_connection_is_kept_for_the_next_request(server: Server) -> None:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=20)
    for _ in range(3):
        connection.request("POST", "/v1/embeddings", json.dumps({"input": "a"}), {"content-type": "application/json"})
        assert connection.getresponse().read().startswith(b'{"object":"list"')
    connection.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"port": 70_000}, r"Serve\(port=70000\): expected 0 to 65535"),
        ({"max_inputs": 0}, r"Serve\(max_inputs=0\): expected 1 or more"),
        ({"request_timeout": 0.0}, r"Serve\(request_timeout=0\.0\): expected seconds"),
        ({"max_wait_ms": -1.0}, r"Serve\(max_wait_ms=-1\.0\): expected 0 or more"),
        ({"served_name": " "}, r"expected a name, or None"),
        ({"host": "0.0.0.0"}, r'host="0\.0\.0\.0"\) is open to the network, without a key\. Give --api-key-env NAME'),
        ({"host": "example.org"}, r"is open to the network"),
        ({"no_api_key": True, "api_key_env": "A"}, r"no_api_key and a key contradict each other"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Serve(**changes)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_the_loopback_needs_no_key(host: str) -> None:
    assert Serve(host=host).is_loopback
    assert Serve(host="0.0.0.0", no_api_key=True).is_loopback is False
    assert Serve(host="0.0.0.0", api_key_env="A").has_key


def test_what_stops_a_server_is_said_before_the_encoder_is_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(*flags: object) -> str:
        with pytest.raises(SystemExit) as left:
            main(["serve", str(tmp_path / "no-encoder"), *map(str, flags)])
        assert left.value.code == 1
        return capsys.readouterr().err

    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    assert "api_key_env=NO_SUCH_KEY: this environment variable is not set" in call("--api-key-env", "NO_SUCH_KEY")
    (tmp_path / "empty").touch()
    assert "holds no key. Write one a line." in call("--api-key-file", tmp_path / "empty")
    assert "cannot be read" in call("--api-key-file", tmp_path / "nowhere")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = call("--port", taken.getsockname()[1])
        assert "cannot be listened on" in said
        assert "Use another --port, or 0." in said


def test_the_network_is_warned_of(forks: Forks, folder: Path) -> None:
    open_to_all = forks.start(folder, "--host", "0.0.0.0", "--no-api-key")
    assert open_to_all.url.startswith("http://0.0.0.0:")
    warning = "serve: warning: 0.0.0.0 is open to the network, without a key, everyone may use it, and not encrypted.\n"
    assert warning in open_to_all.said
    open_to_all.end()
