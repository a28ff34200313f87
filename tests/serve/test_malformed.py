"""Property: whatever a client sends is answered 4xx, or what is not HTTP by a closed connection; the server goes on."""

from __future__ import annotations

import json
import random
import socket
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from serving import Server, post

from bothways import Encoder

REQUESTS, BROKEN = 800, 200
QUIET = 0.3
"""Seconds after which a server that has not answered waits for more."""
VALID: dict[str, Any] = {"model": "tiny", "input": ["a text", "another"], "encoding_format": "float", "dimensions": 7}
JUNK = (True, -1, 1.5, 1e308, 10**30, -(10**4000), "\ud800", "text\udfff", [], {}, [[]], [None], ["a"], {"a": 1})
"""Wrong in every field."""
WRONG: dict[str, tuple[Any, ...]] = {
    "input": (None, "", [[[1]]], ["", "a"], [1, "a"], ["a", 1], [[1], ["a"]], [10**18], [501], [[501]], ["a"] * 3000),
    "model": ("", "another", "tiny\x00", "t" * 100_000),
    "dimensions": (0, 57, "7", 10**18),
    "encoding_format": ("", "floats", "base64 ", "FLOAT"),
    "user": (),
    "instruction": ("all of it " * 200, "a" * 10_000),
    "input_type": ("", "passage", "QUERY"),
    "prompt_name": ("another", "p" * 100),
}
NO_JSON = (
    *(b"", b"{", b"null", b"[]", b'"text"', b"NaN", b"{}", b'{"input": NaN}', b'{"input": "a"', b'{"input": "a"}}'),
    *(b'{"input": "\xff\xfe"}', b'{"input": "\\ud800"}', b'\xef\xbb\xbf{"input": ["", 1]}', b"[" * 100_000),
    *(b'{"input": ' + b"[" * 5000 + b"]" * 5000 + b"}", b'{"input": "a\nb"}', b"{'input': 'a'}", b"\x00" * 100),
    *(b'{"input": 1' + b"0" * 10_000 + b"}", b"input=a&model=tiny", b'{"input": [' + b"1," * 50_000 + b"-1]}"),
)


def malformed(draw: random.Random) -> tuple[str, str, bytes, dict[str, str]]:
    """Method, path, body and headers of a request that is wrong somewhere."""
    headers = {"content-type": "application/json"}
    kind = draw.randrange(7)
    if kind == 0:
        return "POST", "/v1/embeddings", draw.choice(NO_JSON), headers
    if kind == 1:
        body = bytearray(json.dumps(VALID).encode())
        for _ in range(draw.randint(1, 4)):
            body[draw.randrange(len(body))] = draw.randrange(256)
        # It may still be valid: then this makes it invalid.
        return "POST", "/v1/embeddings", bytes(body)[: draw.randrange(1, len(body))], headers
    if kind == 2:
        name = draw.choice(list(WRONG))
        wrong = [value for value in (*JUNK, *WRONG[name]) if name != "input" or value != ["a"]]
        return "POST", "/v1/embeddings", json.dumps({**VALID, name: draw.choice(wrong)}).encode(), headers
    if kind == 3:
        unknown = "".join(draw.choices("abcinput_\x00é", k=draw.randint(1, 40)))
        return "POST", "/v1/embeddings", json.dumps({**VALID, unknown + "_": draw.choice(JUNK)}).encode(), headers
    if kind == 4:
        odd = draw.choice(["text/plain", "", "application/x-www-form-urlencoded", "application/jsonx", "\x7f"])
        return "POST", "/v1/embeddings", json.dumps(VALID).encode(), {"content-type": odd}
    if kind == 5:
        method = draw.choice(["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "PROPFIND", "FOO"])
        return method, "/v1/embeddings", b"", headers
    path = draw.choice(
        ["/", "/v1", "/v1/", "/v1/embeddings/", "//v1/embeddings", "/v1/models/%00", "/..%2f", "/%ff%fe"]
    )
    return draw.choice(["GET", "POST"]), path, json.dumps(VALID).encode(), headers


def raw(draw: random.Random) -> bytes:
    """Bytes that are hardly HTTP."""
    body = json.dumps({"input": ""}).encode()
    line = b"POST /v1/embeddings HTTP/1.1\r\nConnection: close\r\n"
    host = b"Host: x\r\nContent-Type: application/json\r\n"
    length = b"Content-Length: %d\r\n\r\n" % len(body)
    return draw.choice(
        [
            draw.randbytes(draw.randint(1, 3000)) + b"\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + draw.randbytes(200),
            b"GET\r\n\r\n",
            b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
            b"POST /v1/embeddings\xff HTTP/1.1\r\n" + host + length + body,
            line + host + b"X: " + b"a" * draw.randint(70_000, 300_000) + b"\r\n" + length + body,
            line + host + b"".join(b"X%d: y\r\n" % number for number in range(9000)) + length + body,
            line + host + b"Content-Length: -5\r\n\r\n" + body,
            line + host + b"Content-Length: 99999999999999999999\r\n\r\n" + body,
            line + host + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n" + body,
            line + host + b"Content-Length: %d\r\n\r\n" % (len(body) - 3) + body,
            line + host + b"Content-Length: %d\r\n\r\n" % (len(body) + 30) + body,
            line + host + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + body,
            line + host + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n" + body + b"\r\n0\r\n\r\n",
            line + host + b"Transfer-Encoding: gzip\r\n\r\n" + body,
            line + host + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n5\r\n" + body,
            line + b"Host: x\r\nHost: y\r\n" + length + body,
            line + b"Bad Header\r\n" + host + length + body,
            line + b": empty\r\n" + length + body,
            line + host + b"Content-Encoding: gzip\r\n" + length + body,
            line + host + b"Expect: 100-continue\r\n" + length + body,
            line.partition(b"Conn")[0] + host + b"Connection: Upgrade\r\nUpgrade: websocket\r\n" + length + body,
            line + host + length + body + draw.randbytes(50),
            (line.partition(b"Conn")[0] + host + length + body) * 5,
            b"\r\n" * 1000,
            line[: draw.randint(1, len(line) - 1)],
        ]
    )


def answers(server: Server, sent: bytes) -> list[int]:
    """The status of each answer on one connection, until it is closed or nothing comes any more."""
    place = urlsplit(server.url)
    received = bytearray()
    with socket.create_connection((place.hostname, place.port), timeout=20) as connection:
        try:
            connection.sendall(sent)
            connection.settimeout(QUIET)
            while part := connection.recv(65536):
                received += part
        except (ConnectionResetError, BrokenPipeError, TimeoutError):
            pass
    found = [piece[:3] for piece in bytes(received).split(b"HTTP/1.1 ")[1:]]
    return [int(status) for status in found if status != b"100"]


@pytest.fixture(autouse=True)
def _goes_on(server: Server, encoder: Encoder) -> Any:
    """After all of it the server gives the right vector at once."""
    yield
    answer = post(server, {"input": "a text"})
    assert answer.status_code == 200
    np.testing.assert_allclose(answer.json()["data"][0]["embedding"], encoder.encode("a text"), rtol=0, atol=1e-5)
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
    assert "Traceback" not in server.said


def test_800_malformed_requests(server: Server) -> None:
    draw, statuses = random.Random(3), set()
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for number in range(REQUESTS):
            method, path, body, headers = malformed(draw)
            answer = client.request(method, path, content=body, headers=headers)
            told = (number, method, path, body[:200], answer.status_code, answer.text[:300])
            assert 400 <= answer.status_code < 500, told
            if method != "HEAD":
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}, told
            statuses.add(answer.status_code)
    assert statuses == {400, 404, 405, 415}


def test_200_connections_that_are_not_http(server: Server) -> None:
    draw, statuses = random.Random(4), set()
    for number in range(BROKEN):
        sent = raw(draw)
        found = answers(server, sent)
        assert all(400 <= status < 500 for status in found), (number, sent[:200], found)
        statuses |= set(found)
    assert {400, 413, 415} <= statuses
