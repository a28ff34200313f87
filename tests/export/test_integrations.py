"""Parity: the snippets of `docs/integrations.md` give the encoder's own vectors, prompts included."""

from __future__ import annotations

import json
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
from pages import blocks

from bothways import Encoder, convert

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
BUILD = ROOT / "build" / "integrations"
TASK, LANGCHAIN, LLAMAINDEX, LANCEDB, QDRANT = blocks("python", TEXT)
PROMPTS = {"query": "Find the passage that answers this: ", "document": "Passage: "}
WRITE = '\nimport json\njson.dump([document_vectors, query_vector], open("vectors.json", "w"))\n'


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an encoder that knows words: the decoder that comes with the package, with prompts."""
    convert("embedded", dtype="float32", device="cpu", prompts=PROMPTS).save_pretrained(tmp_path / "my-encoder")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def own(desk: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors of the page's texts as documents, of its question, and of the question without its prompt."""
    scope: dict[str, object] = {}
    exec(TASK, scope)
    encoder = Encoder.from_pretrained(desk / "my-encoder", device="cpu")
    return (
        encoder.encode_document(scope["texts"]),
        encoder.encode_query(scope["question"]),
        encoder.encode(scope["question"]),
    )


def test_stores_hold_the_encoders_vectors(
    desk: Path, own: tuple[np.ndarray, np.ndarray, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    documents, query, _ = own
    scope: dict[str, object] = {}
    with warnings.catch_warnings():
        # lancedb's and qdrant's own, about what they call inside.
        warnings.simplefilter("ignore", DeprecationWarning)
        exec(f"{TASK}\n{LANCEDB}", scope)
        table = scope["table"].to_arrow().sort_by([("text", "descending")])
        exec(QDRANT, scope)
    assert table["text"].to_pylist() == sorted(scope["texts"], reverse=True)
    order = np.argsort(scope["texts"])[::-1]
    np.testing.assert_allclose(np.stack(table["vector"].to_numpy()), documents[order], rtol=0, atol=1e-5)
    points, _ = scope["client"].scroll("texts", with_vectors=True)
    np.testing.assert_allclose([point.vector for point in points], documents, rtol=0, atol=1e-5)
    nearest = scope["texts"][int((documents @ query).argmax())]
    shown = blocks("text", TEXT)
    assert capsys.readouterr().out == "".join(shown) == f"{nearest}\n" * 2


@pytest.mark.engine
@pytest.mark.parametrize("snippet", [LANGCHAIN, LLAMAINDEX], ids=["langchain", "llamaindex"])
def test_frameworks_give_the_encoders_vectors(
    snippet: str, desk: Path, own: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    if not (BUILD / "built").exists():
        pytest.skip("LangChain and LlamaIndex are not built. Build them once: python scripts/integrations_env.py")
    documents, query, bare = own
    code = f"{TASK}\n{snippet}\n{WRITE}"
    subprocess.run([BUILD / "bin" / "python", "-c", code], check=True, capture_output=True, cwd=desk)
    found = [np.array(rows) for rows in json.loads((desk / "vectors.json").read_text())]
    np.testing.assert_allclose(found[0], documents, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found[1], query, rtol=0, atol=1e-5)
    assert np.abs(found[1] - bare).max() > 1e-3


@pytest.mark.engine
@pytest.mark.parametrize(
    ("snippet", "lines"),
    [(LANGCHAIN, "_encode_kwargs="), (LLAMAINDEX, "_instruction=")],
    ids=["langchain", "llamaindex"],
)
def test_without_those_lines_they_drop_the_prompt(
    snippet: str, lines: str, desk: Path, own: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    if not (BUILD / "built").exists():
        pytest.skip("LangChain and LlamaIndex are not built. Build them once: python scripts/integrations_env.py")
    shorter = "\n".join(line for line in snippet.splitlines() if lines not in line and "encode_kwargs=" not in line)
    code = f"{TASK}\n{shorter}\n{WRITE}"
    subprocess.run([BUILD / "bin" / "python", "-c", code], check=True, capture_output=True, cwd=desk)
    _, query = json.loads((desk / "vectors.json").read_text())
    np.testing.assert_allclose(query, own[2], rtol=0, atol=1e-5)
