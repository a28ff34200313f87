"""Contract: what sentence-transformers saves again is the same encoder, or is refused with what was lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from bidirectional.tiny import tiny
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

from bothways import MNTP, Encoder, convert, mntp
from bothways.errors import ConversionError

PROMPTS = {"query": "Find the passage that answers this: ", "document": "Passage: "}
TEXTS = ["How do I open a compressed file?", "short", "The zipfile module reads and writes archives of files."]
SIZES = {"vocab_size": 501, "max_position_embeddings": 256, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 1}


def decoder(name: str, tokenizer_of: Path, folder: Path) -> Path:
    tiny(name, "eager", head=True, **SIZES).save_pretrained(folder)
    for file in tokenizer_of.glob("*token*"):
        shutil.copy(file, folder / file.name)
    return folder


def test_prompts_and_all_else_survive_a_stage_a_folder_and_a_save_by_sentence_transformers(
    tiny_untied_folder: Path, real_texts: list[str], tmp_path: Path
) -> None:
    """The base has no pad token, so that it is kept too."""
    encoder = convert(
        tiny_untied_folder,
        dtype="float32",
        device="cpu",
        prompts=PROMPTS,
        pooling="last",
        max_length=77,
        append_eos=True,
    )
    settings = MNTP(steps=1, batch_size=4, block_size=32, held_out_items=3, precision="fp32", tune="full")
    encoder = mntp(encoder, real_texts[:20], settings, show_progress=False)
    encoder.save_pretrained(tmp_path / "enc")
    model = SentenceTransformer(str(tmp_path / "enc"), device="cpu")
    assert model.prompts == PROMPTS
    model.save(str(tmp_path / "again"))
    assert not (tmp_path / "again" / "bothways.json").exists()
    again = Encoder.from_pretrained(tmp_path / "again", device="cpu")
    assert again.tokenizer.pad_token == encoder.tokenizer.pad_token
    for name in ("prompts", "pooling", "pool_over", "normalize", "max_length", "direction"):
        assert getattr(again.settings, name) == getattr(encoder.settings, name), name
    again.save_pretrained(tmp_path / "own")
    thrice = SentenceTransformer(str(tmp_path / "own"), device="cpu")
    for other in (model, again, thrice):
        np.testing.assert_allclose(other.encode(TEXTS), encoder.encode(TEXTS), rtol=0, atol=1e-6)
        np.testing.assert_allclose(other.encode_query(TEXTS), encoder.encode_query(TEXTS), rtol=0, atol=1e-6)
        np.testing.assert_allclose(other.encode_document(TEXTS), encoder.encode_document(TEXTS), rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["stablelm", "nemotron"])
def test_the_lost_attention_is_named(family: str, tiny_llama_folder: Path, tmp_path: Path) -> None:
    encoder = convert(decoder(family, tiny_llama_folder, tmp_path / family), dtype="float32", device="cpu")
    encoder.save_pretrained(tmp_path / "enc")
    assert "needs `attn_implementation=eager`" in (tmp_path / "enc" / "README.md").read_text()
    SentenceTransformer(str(tmp_path / "enc"), device="cpu").save(str(tmp_path / "again"))
    with pytest.raises(
        ConversionError, match=r"(?s)still hides the future.*sentence-transformers, when it saves a folder"
    ):
        Encoder.from_pretrained(tmp_path / "again", device="cpu")
    # The way out that the error names.
    path = tmp_path / "again" / "sentence_bert_config.json"
    options = json.loads(path.read_text())
    path.write_text(json.dumps({**options, "model_args": {"attn_implementation": "eager"}}))
    mended = Encoder.from_pretrained(tmp_path / "again", device="cpu")
    np.testing.assert_allclose(mended.encode(TEXTS), encoder.encode(TEXTS), rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["gpt_neo", "lfm2"])
def test_a_folder_that_lost_its_module_is_no_causal_encoder_but_refused(
    family: str, tiny_llama_folder: Path, tmp_path: Path
) -> None:
    """As where somebody builds the modules by hand: config.json says that it was converted."""
    encoder = convert(decoder(family, tiny_llama_folder, tmp_path / family), dtype="float32", device="cpu")
    encoder.save_pretrained(tmp_path / "enc")
    first = Transformer(str(tmp_path / "enc"))
    plain = SentenceTransformer(modules=[first, Pooling(48), Normalize()], device="cpu")
    assert np.abs(plain.encode(TEXTS) - encoder.encode(TEXTS)).max() > 1e-3
    plain.save(str(tmp_path / "again"))
    with pytest.raises(ConversionError, match=r"(?s)still hides the future.*something was lost since"):
        Encoder.from_pretrained(tmp_path / "again", device="cpu")


def test_a_lost_pad_token_is_found_again(tiny_llama_folder: Path, tmp_path: Path) -> None:
    encoder = convert(tiny_llama_folder, dtype="float32", device="cpu")
    encoder.save_pretrained(tmp_path / "enc")
    path = tmp_path / "enc" / "tokenizer_config.json"
    path.write_text(
        json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "pad_token"})
    )
    again = Encoder.from_pretrained(tmp_path / "enc", device="cpu")
    assert again.tokenizer.pad_token == encoder.tokenizer.pad_token
    with torch.no_grad():
        np.testing.assert_allclose(again.encode(TEXTS), encoder.encode(TEXTS), rtol=0, atol=1e-6)
