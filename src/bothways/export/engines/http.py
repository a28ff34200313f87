"""An endpoint that answers over HTTP: OpenAI's `/v1/embeddings` or text-embeddings-inference's `/embed`.

Texts are sent as they are: whoever asks such a server for queries puts the stored prompt before them.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bothways.errors import ConfigError, VerificationError
from bothways.export.http_settings import Http
from bothways.export.judging import FORMATS

if TYPE_CHECKING:
    import httpx

OPENAI, TEI = "/embeddings", "/embed"
"""What the address ends with."""
TEXTS = 32
"""Texts in a request: as many as text-embeddings-inference takes."""
SHOWN = 500
"""Characters of an answer that are shown in an error."""


class HttpEngine:
    """A running server. Raises ConfigError for an address of neither kind, or a key that is not there.

    Every call raises VerificationError where no usable answer comes; it shows what came instead.
    """

    def __init__(self, url: str, settings: Http | None = None) -> None:
        try:
            import httpx
        except ImportError as error:
            raise ConfigError("Asking a server needs httpx: pip install 'bothways[serve]'.") from error
        self.settings = settings or Http()
        self.name = self.url = url
        if not url.endswith((OPENAI, TEI)):
            raise ConfigError(
                f"{url}: expected the address of an endpoint, which ends with /v1/embeddings (OpenAI, vLLM, llama.cpp, "
                "bothways serve) or /embed (text-embeddings-inference)."
            )
        self.client = httpx.Client(timeout=self.settings.timeout, headers=_headers(self.settings.api_key_env))
        self.max_length: int | None = None
        self.number_format: str | None = None
        try:
            self.model = self._openai_model() if url.endswith(OPENAI) else self._tei_model()
        except BaseException:
            self.close()
            raise

    def embed(self, texts: Sequence[str], /) -> np.ndarray:
        """float32, (texts, dim); as many as `TEXTS` in one request."""
        ask = self._openai if self.url.endswith(OPENAI) else self._tei
        rows = [row for start in range(0, len(texts), TEXTS) for row in ask(list(texts[start : start + TEXTS]))]
        if len({len(row) for row in rows}) > 1:
            sizes = sorted({len(row) for row in rows})
            raise VerificationError(f"{self.name} returned vectors of different lengths: {sizes}.")
        return np.stack(rows)

    def close(self) -> None:
        """Closes the connections."""
        self.client.close()

    def _openai(self, texts: list[str]) -> list[np.ndarray]:
        asked = {"model": self.model, "input": texts, "encoding_format": self.settings.encoding_format}
        answer = self._posted(asked)
        try:
            entries = sorted(answer["data"], key=lambda entry: int(entry["index"]))
            numbers = [int(entry["index"]) for entry in entries]
            found = [entry["embedding"] for entry in entries]
        except (KeyError, TypeError, ValueError) as error:
            raise self._unusable(f"data[...].index and .embedding for {len(texts)} texts", answer) from error
        if numbers != list(range(len(texts))):
            raise self._unusable(f"one vector for each of {len(texts)} texts", {"index": numbers})
        return [self._vector(vector) for vector in found]

    def _tei(self, texts: list[str]) -> list[np.ndarray]:
        answer = self._posted({"inputs": texts})
        if not isinstance(answer, list) or len(answer) != len(texts):
            raise self._unusable(f"a list of {len(texts)} vectors", answer)
        return [self._vector(vector) for vector in answer]

    def _vector(self, sent: Any) -> np.ndarray:
        try:
            if isinstance(sent, str):
                return np.frombuffer(base64.b64decode(sent, validate=True), dtype="<f4")
            found = np.array(sent, dtype=np.float32)
        except (TypeError, ValueError, binascii.Error) as error:
            raise self._unusable("a list of numbers, or float32 numbers in base64", sent) from error
        if found.ndim != 1 or not found.size:
            raise self._unusable("a list of numbers, or float32 numbers in base64", sent)
        return found

    def _openai_model(self) -> str:
        """The model's name: what was asked for, or the only one that the server lists, if it lists any."""
        entries = self._told(f"{self.url.removesuffix(OPENAI)}/models").get("data")
        listed = entries if isinstance(entries, list) else []
        models = {str(entry["id"]): entry for entry in listed if isinstance(entry, dict) and "id" in entry}
        if self.settings.model is None and len(models) > 1:
            raise ConfigError(f"{self.url} serves {', '.join(models)}. Name one: --model.")
        name = self.settings.model or next(iter(models), "default")
        # As vLLM says it.
        limit = models.get(name, {}).get("max_model_len")
        self.max_length = limit if isinstance(limit, int) and limit > 0 else None
        return name

    def _tei_model(self) -> str:
        info = self._told(f"{self.url.removesuffix(TEI)}/info")
        limit, number_format = info.get("max_input_length"), info.get("model_dtype")
        self.max_length = limit if isinstance(limit, int) and limit > 0 else None
        self.number_format = number_format if number_format in FORMATS else None
        return str(info.get("model_id", ""))

    def _told(self, url: str) -> dict[str, Any]:
        """What the server says of itself at an address that not every server has."""
        answer = self._sent("GET", url, None)
        told = answer.json() if answer.is_success and _is_json(answer) else None
        return told if isinstance(told, dict) else {}

    def _posted(self, content: dict[str, Any]) -> Any:
        answer = self._sent("POST", self.url, content)
        if answer.is_success and _is_json(answer):
            return answer.json()
        hint = " Name the environment variable with the key: --api-key-env." if answer.status_code == 401 else ""
        what = "what is no JSON" if answer.is_success else "an error"
        raise VerificationError(f"{self.url} answered {what}, HTTP {answer.status_code}: {_shown(answer.text)}{hint}")

    def _sent(self, method: str, url: str, content: dict[str, Any] | None) -> httpx.Response:
        import httpx

        try:
            return self.client.request(method, url, json=content)
        except httpx.TimeoutException as error:
            raise VerificationError(
                f"{url} did not answer within {self.settings.timeout:g} seconds. Pass a longer --timeout."
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise VerificationError(
                f"{url} cannot be reached: {error}. Is the server running, and is this its address?"
            ) from error

    def _unusable(self, expected: str, found: Any) -> VerificationError:
        return VerificationError(f"{self.name} answered {_shown(found)}, expected {expected}.")


def _headers(api_key_env: str | None) -> dict[str, str]:
    if api_key_env is None:
        return {}
    key = os.environ.get(api_key_env)
    if not key:
        raise ConfigError(f"verify: the environment variable {api_key_env} is not set. Put the API key into it.")
    return {"Authorization": f"Bearer {key}"}


def _is_json(answer: httpx.Response) -> bool:
    try:
        answer.json()
    except ValueError:
        return False
    return True


def _shown(found: Any) -> str:
    text = str(found).strip()
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
