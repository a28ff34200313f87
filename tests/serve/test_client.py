"""Parity: the official client gets the vectors of `Encoder.encode`, whatever it sends and asks for."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import openai
import pytest
from openai import OpenAI
from serving import Server, metric, post

from bothways import Encoder
from bothways.export.verify import verify

TEXTS = ["a text", "How do I open a compressed file?", "x", "a text", "Ünïcode 文字 🙂 \n\t"]
CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="not needed", max_retries=0) as client:
        yield client


def vectors(client: OpenAI, given: object, **more: object) -> np.ndarray:
    found = client.embeddings.create(model="tiny", input=given, **more)
    assert [item.index for item in found.data] == list(range(len(found.data)))
    assert all(item.object == "embedding" for item in found.data)
    rows = [item.embedding for item in found.data]
    if more.get("encoding_format") == "base64":
        return np.stack([np.frombuffer(base64.b64decode(row), dtype="<f4") for row in rows])
    return np.array(rows)


@pytest.mark.parametrize("how", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
def test_vectors_are_those_of_encode(client: OpenAI, encoder: Encoder, how: dict[str, str]) -> None:
    found = vectors(client, TEXTS, **how)
    np.testing.assert_allclose(found, encoder.encode(TEXTS), **CLOSE)
    assert (found[0] == found[3]).all()
    np.testing.assert_allclose(vectors(client, TEXTS[1], **how), encoder.encode(TEXTS[1:2]), **CLOSE)


def test_fewer_numbers_are_of_unit_length_again(client: OpenAI, encoder: Encoder) -> None:
    found = vectors(client, TEXTS, dimensions=7)
    np.testing.assert_allclose(found, encoder.encode(TEXTS, truncate_dim=7), **CLOSE)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-6)
    assert vectors(client, TEXTS, dimensions=encoder.dim).shape == (5, encoder.dim)


def test_token_ids_are_taken_as_they_are(client: OpenAI, encoder: Encoder) -> None:
    rows = [row.ids for row in encoder.tokenise(TEXTS)]
    np.testing.assert_allclose(vectors(client, rows), encoder.encode(TEXTS), **CLOSE)
    np.testing.assert_allclose(vectors(client, rows[1]), encoder.encode(TEXTS[1:2]), **CLOSE)
    without_bos = vectors(client, rows[1][1:])
    assert np.abs(without_bos - encoder.encode(TEXTS[1])).max() > 1e-3
    with pytest.raises(openai.BadRequestError, match=r"\"input\[1\]\" has the token id 501, but tiny's end at 500\."):
        vectors(client, [[1, 2], [3, 501]])
    with pytest.raises(openai.BadRequestError, match=r"has the token id -1"):
        vectors(client, [-1])
    with pytest.raises(openai.BadRequestError, match=r"\"instruction\" stands before texts"):
        vectors(client, [1, 2], extra_body={"instruction": "Find"})


def test_prompts_and_instructions_stand_before_the_texts(client: OpenAI, encoder: Encoder) -> None:
    by_type = vectors(client, TEXTS, extra_body={"input_type": "query"})
    np.testing.assert_allclose(by_type, encoder.encode_query(TEXTS), **CLOSE)
    documents = vectors(client, TEXTS, extra_body={"input_type": "document"})
    np.testing.assert_allclose(documents, encoder.encode_document(TEXTS), **CLOSE)
    by_name = vectors(client, TEXTS, extra_body={"prompt_name": "code"})
    np.testing.assert_allclose(by_name, encoder.encode([f"def {text}" for text in TEXTS]), **CLOSE)
    instructed = vectors(client, TEXTS, extra_body={"instruction": "Find what answers it"})
    np.testing.assert_allclose(instructed, encoder.encode(TEXTS, instruction="Find what answers it"), **CLOSE)
    different = [by_type, documents, by_name, instructed, encoder.encode(TEXTS)]
    assert all(np.abs(a - b).max() > 1e-3 for i, a in enumerate(different) for b in different[:i])
    nothing = {"instruction": None, "input_type": None, "prompt_name": None, "user": "me"}
    np.testing.assert_allclose(vectors(client, TEXTS, extra_body=nothing), encoder.encode(TEXTS), **CLOSE)


def test_tokens_are_counted_and_so_are_texts_that_were_cut(server: Server, client: OpenAI, encoder: Encoder) -> None:
    before = {name: metric(server, f"bothways_{name}_total") for name in ("texts", "tokens", "overlong_texts")}
    long = "every word counts " * 200
    found = client.embeddings.create(model="tiny", input=[long, "short", long])
    tokens = sum(len(row) for row in encoder.tokenise([long, "short", long]))
    assert found.usage.prompt_tokens == found.usage.total_tokens == tokens
    assert tokens > 2 * encoder.settings.max_length
    assert found.model_extra == {"overlong_texts": 2}
    with pytest.warns(UserWarning, match=r"2 of 3 texts"):
        expected = encoder.encode([long, "short", long])
    np.testing.assert_allclose(np.array([item.embedding for item in found.data]), expected, **CLOSE)
    grown = {name: metric(server, f"bothways_{name}_total") - value for name, value in before.items()}
    assert grown == {"texts": 3, "tokens": tokens, "overlong_texts": 2}
    cut = client.embeddings.create(model="tiny", input=[list(range(2, 400))])
    assert (cut.usage.prompt_tokens, cut.model_extra) == (encoder.settings.max_length, {"overlong_texts": 1})


def test_the_model_is_known_by_its_name(server: Server, client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "bothways"
    with pytest.raises(openai.NotFoundError, match=r"This server has the model \\?\"tiny\\?\""):
        client.models.retrieve("another")
    with pytest.raises(openai.NotFoundError) as raised:
        client.embeddings.create(model="text-embedding-3-small", input="a text")
    assert raised.value.code == "model_not_found"
    assert post(server, {"input": "a text"}).status_code == 200


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"input": None}, "input", '"input" is null, expected a string, or a list of strings or token ids.'),
        ({"input": []}, "input", '"input" is an empty list, expected at least one text.'),
        ({"input": ""}, "input", '"input[0]" is an empty string, which has no vector. Leave it out.'),
        ({"input": ["a", 1.5]}, "input", '"input[1]" is a number, expected a string.'),
        ({"input": [1, True]}, "input", '"input[1]" is a boolean, expected a token id.'),
        ({"input": [[1], []]}, "input", '"input[1]" is an empty list, expected token ids.'),
        ({"input": [[1], "a"]}, "input", '"input[1]" is a string, but the first is a list of token ids.'),
        ({"input": ["a"] * 2049}, "input", '"input" has 2,049 texts, at most 2,048 are allowed.'),
        ({"dimensions": 57}, "dimensions", '"dimensions" is 57, but the vectors of tiny have 56 numbers.'),
        ({"dimensions": 0}, "dimensions", '"dimensions": input should be greater than or equal to 1.'),
        ({"dimensions": 7.5}, "dimensions", '"dimensions": input should be a valid integer.'),
        ({"encoding_format": "int8"}, "encoding_format", "\"encoding_format\": input should be 'float' or 'base64'."),
        ({"instuction": "Find"}, "instuction", 'Unknown field "instuction". Did you mean "instruction"?'),
        ({"prompt_name": "qury"}, "prompt_name", '"prompt_name" is "qury", but tiny has no such prompt. Did you mean'),
        ({"instruction": "a", "input_type": "query"}, "input_type", '"instruction" and "input_type" both say what'),
        ({"instruction": "a b c " * 150}, "instruction", "alone fills max_length=256 tokens"),
    ],
)
def test_what_is_wrong_is_said_in_the_shape_of_openai(
    server: Server, change: dict[str, object], param: str, message: str
) -> None:
    answer = post(server, {"model": "tiny", "input": "a text", **change})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert message in error["message"]


class OverHttp:
    """The server as an engine, which knows stored prompts by name."""

    name, max_length, number_format = "bothways serve", 256, "float32"

    def __init__(self, client: OpenAI) -> None:
        self.client = client

    def embed(self, texts: Sequence[str], /) -> np.ndarray:
        return vectors(self.client, list(texts)).astype(np.float32)

    def embed_prompted(self, texts: Sequence[str], prompt_name: str, /) -> np.ndarray:
        return vectors(self.client, list(texts), extra_body={"prompt_name": prompt_name}).astype(np.float32)

    def close(self) -> None:
        pass


def test_verify_finds_the_bidirectional_vectors(client: OpenAI, folder: Path) -> None:
    verdict = verify(OverHttp(client), folder, device="cpu")
    verdict.require()
    assert verdict.matches == "bidirectional"
    assert verdict.faults == ()
