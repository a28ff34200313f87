"""Contract: servers are asked as their users ask them, and whatever comes instead of vectors is shown."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from endpoints import endpoints

from bothways.errors import ConfigError, VerificationError
from bothways.export.engines.http import Http, HttpEngine


def numbers(texts: list[str]) -> np.ndarray:
    """Something that tells texts and their order."""
    return np.array([[len(text), text.count("a"), 0.1] for text in texts], dtype=np.float32)


ANSWERS = {
    "right": numbers,
    "locked": numbers,
    "broken": lambda texts: 500,
    "refusing": lambda texts: 413,
    "html": lambda texts: "<html>Bad gateway</html>",
    "few": lambda texts: numbers(texts)[1:],
    "flat": lambda texts: np.zeros(len(texts)),
    "object": lambda texts: '{"data": [{"index": 0}]}',
    "empty": lambda texts: np.zeros((len(texts), 0)),
}
TEXTS = ["a cat", "another one", "banana"]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with endpoints(ANSWERS) as url:
        yield url


def opened(url: str, **settings: object) -> HttpEngine:
    return HttpEngine(url, Http(**settings))


@pytest.mark.parametrize("path", ["v1/embeddings", "embed"])
@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_vectors_come_in_the_order_of_the_texts(address: str, path: str, encoding: str) -> None:
    engine = opened(f"{address}/right/{path}", encoding_format=encoding)
    many = [f"{'a' * count} text" for count in range(70)]
    np.testing.assert_array_equal(engine.embed(many), numbers(many))
    assert engine.embed(many).dtype == np.float32
    engine.close()


@pytest.mark.parametrize("path", ["v1/embeddings", "embed"])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("broken", r'answered an error, HTTP 500: \{"error": "out of memory"\}'),
        ("refusing", r"HTTP 413"),
        ("html", r"what is no JSON, HTTP 200: <html>Bad gateway"),
        ("few", r"expected (one vector for each of 3 texts|a list of 3 vectors)"),
        ("flat", r"answered 0\.0, expected a list of numbers|answered .*expected data"),
        ("object", r"expected (data\[\.\.\.\]\.index|a list of 3 vectors)"),
        ("empty", r"answered \[\], expected a list of numbers"),
        ("locked", r"HTTP 401: .*--api-key-env"),
    ],
)
def test_what_comes_instead_is_shown(address: str, path: str, name: str, said: str) -> None:
    engine = opened(f"{address}/{name}/{path}")
    with pytest.raises(VerificationError, match=said):
        engine.embed(TEXTS)
    engine.close()


def test_a_key_comes_from_the_environment(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "open sesame")
    engine = opened(f"{address}/locked/embed", api_key_env="A_KEY")
    assert len(engine.embed(TEXTS)) == 3
    engine.close()
    monkeypatch.delenv("A_KEY")
    with pytest.raises(ConfigError, match=r"the environment variable A_KEY is not set"):
        opened(f"{address}/locked/embed", api_key_env="A_KEY")


def test_a_server_says_what_it_serves() -> None:
    with endpoints({"one": numbers}, {"max_model_len": 40, "max_input_length": 50, "model_dtype": "float16"}) as url:
        openai, tei = opened(f"{url}/one/v1/embeddings"), opened(f"{url}/one/embed")
        assert (openai.model, openai.max_length, openai.number_format) == ("tiny", 40, None)
        assert (tei.max_length, tei.number_format) == (50, "float16")
        openai.close()
        tei.close()
    with endpoints({"two": numbers}, {"models": ["small", "large"]}) as url:
        with pytest.raises(ConfigError, match=r"serves small, large\. Name one: --model"):
            opened(f"{url}/two/v1/embeddings")
        named = opened(f"{url}/two/v1/embeddings", model="large")
        assert named.model == "large"
        named.close()


def test_other_addresses_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"ends with /v1/embeddings .* or /embed"):
        opened("http://127.0.0.1:1/v1")
    with pytest.raises(VerificationError, match=r"cannot be reached: .*Connection refused.* Is the server running"):
        opened("http://127.0.0.1:1/v1/embeddings")
    with pytest.raises(ConfigError, match=r"timeout=0, expected seconds above 0"):
        Http(timeout=0)


def test_a_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/embed"
        with pytest.raises(VerificationError, match=r"did not answer within 0\.2 seconds\. Pass a longer --timeout"):
            opened(url, timeout=0.2)
