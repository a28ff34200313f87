"""Contract: an encoder that is causal on purpose is trained by every stage, stays causal, and says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bothways import MNTP, Encoder, SimCSE, Supervised, convert, mntp, simcse, supervised
from bothways.bidirectional.certificate import Certificate
from bothways.data import Example
from bothways.errors import ConversionError

SHORT = {"steps": 2, "batch_size": 4, "precision": "fp32", "held_out_items": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_llama_folder: Path, real_texts: list[str]) -> Path:
    """Converted, then through all three stages."""
    texts = [text for text in real_texts if len(text) < 150][:20]
    encoder = convert(tiny_llama_folder, direction="causal", pooling="last", dtype="float32", device="cpu")
    mntp(encoder, texts, MNTP(block_size=24, learning_rate=1e-3, **SHORT), show_progress=False)
    simcse(encoder, texts, SimCSE(**SHORT), show_progress=False)
    examples = [Example(query=text[:20], positive=text) for text in texts]
    supervised(encoder, examples, Supervised(**SHORT), show_progress=False)
    encoder.save_pretrained(out := tmp_path_factory.mktemp("causal") / "encoder")
    return out


def first_state(encoder: Encoder, text: str) -> np.ndarray:
    return encoder.hidden_states(encoder.collate(encoder.tokenise([text])))[0, 1].detach().numpy()


def test_no_token_sees_a_later_one_after_all_stages(folder: Path) -> None:
    encoder = Encoder.from_pretrained(folder)
    assert encoder.settings.direction == "causal"
    assert [stage["stage"] for stage in encoder.record.stages] == ["convert", "mntp", "simcse", "supervised"]
    assert encoder.record.stages[0]["settings"]["direction"] == "causal"
    certificate = encoder.record.certificate
    assert certificate is not None
    assert certificate.direction == "causal"
    np.testing.assert_allclose(first_state(encoder, "one two"), first_state(encoder, "one red sky"), atol=1e-6)


def test_the_folder_says_so_to_everyone(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config.get("is_causal") is not False
    assert "use_bidirectional_attention" not in config
    card = (folder / "README.md").read_text()
    assert "# A causal text encoder made from" in card
    assert "\n## Certificate\n\nllama: causal" in card


def test_plain_sentence_transformers_gives_its_vectors(folder: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    texts = ["a text", "another, which is longer"]
    stock = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    np.testing.assert_allclose(stock.encode(texts), Encoder.from_pretrained(folder).encode(texts), atol=1e-5)


def test_mntp_says_what_it_teaches_a_causal_encoder(
    tiny_llama_folder: Path, real_texts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    said = {}
    for direction in ("causal", "bidirectional"):
        encoder = convert(tiny_llama_folder, direction=direction, dtype="float32", device="cpu")
        mntp(encoder, real_texts[:9], MNTP(block_size=24, **SHORT))
        said[direction] = "causal: hidden tokens are predicted from those before them alone" in capsys.readouterr().err
    assert said == {"causal": True, "bidirectional": False}


def test_what_sees_the_future_is_no_causal_encoder(tiny_llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No decoder that is known ignores the setting; here the measurement is that of the converted model."""
    both: Certificate | None = convert(tiny_llama_folder, dtype="float32", device="cpu").record.certificate
    monkeypatch.setattr("bothways.stages.convert.probe", lambda model: both)
    with pytest.raises(ConversionError, match=r"sees the future: layers\.0\.self_attn \(LlamaAttention\)\.\s+It is no"):
        convert(tiny_llama_folder, direction="causal", dtype="float32", device="cpu")
