"""Parity: sentence-transformers folders with a LoRA adapter give sentence-transformers' own vectors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lora_folders import EVERY, amend, make_adapter
from peft import LoraConfig
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

from bothways import Encoder, convert
from bothways.errors import ConversionError, DataError
from bothways.lora import peft_wraps

# One text has more than the 64 tokens that a folder says it reads.
pytestmark = pytest.mark.filterwarnings("ignore:.*were cut:UserWarning")
TEXTS = ["How do I open a compressed file?", "short", "The zipfile module reads and writes archives. " * 3]


def save_with_adapter(base: Path, folder: Path) -> np.ndarray:
    """A folder as sentence-transformers saves a model on which `add_adapter` was called, and its vectors."""
    trunk = Transformer(str(base), max_seq_length=64)
    pooling = Pooling(trunk.get_embedding_dimension(), pooling_mode="mean")
    model = SentenceTransformer(modules=[trunk, pooling, Normalize()], device="cpu")
    torch.manual_seed(5)
    with peft_wraps():
        model.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=EVERY, init_lora_weights=False))
    model.save(str(folder))
    vectors: np.ndarray = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    return vectors


@pytest.fixture
def bidirectional(tiny_llama_folder: Path, tmp_path: Path) -> Path:
    convert(tiny_llama_folder).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("direction", ["causal", "bidirectional"])
def test_the_vectors_and_the_direction_of_a_folder_with_an_adapter(
    tiny_llama_folder: Path, bidirectional: Path, tmp_path: Path, direction: str
) -> None:
    base = tiny_llama_folder if direction == "causal" else bidirectional
    expected = save_with_adapter(base, tmp_path / "stock")
    assert not list((tmp_path / "stock").rglob("model.safetensors"))
    encoder = Encoder.from_pretrained(tmp_path / "stock")
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, rtol=0, atol=1e-6)
    assert (encoder.settings.direction, encoder.settings.max_length) == (direction, 64)
    assert [stage["stage"] for stage in encoder.record.stages] == ["adapter"]
    assert encoder.record.base == str(base)
    encoder.save_pretrained(tmp_path / "mine")
    np.testing.assert_allclose(
        SentenceTransformer(str(tmp_path / "mine"), device="cpu").encode(TEXTS), expected, rtol=0, atol=1e-6
    )


def test_an_adapter_in_a_folder_of_its_first_module(tiny_llama_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stock"
    expected = save_with_adapter(tiny_llama_folder, folder)
    modules = json.loads((folder / "modules.json").read_text())
    inner = folder / "0_Transformer"
    inner.mkdir()
    for file in [
        path for path in folder.iterdir() if path.is_file() and path.name not in ("modules.json", "README.md")
    ]:
        if file.name != "config_sentence_transformers.json":
            file.rename(inner / file.name)
    modules[0]["path"] = inner.name
    (folder / "modules.json").write_text(json.dumps(modules))
    np.testing.assert_allclose(Encoder.from_pretrained(folder).encode(TEXTS), expected, rtol=0, atol=1e-6)


def test_an_adapter_passed_beside_a_stock_folder(tiny_llama_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stock"
    trunk = Transformer(str(tiny_llama_folder))
    pooling = Pooling(trunk.get_embedding_dimension(), pooling_mode="mean")
    SentenceTransformer(modules=[trunk, pooling], device="cpu").save(str(folder))
    adapter = make_adapter(tiny_llama_folder, tmp_path / "a", seed=4, says=str(folder))
    beside = Encoder.from_pretrained(folder, adapter=adapter)
    alone = Encoder.from_pretrained(adapter)
    stock = SentenceTransformer(str(folder), device="cpu")
    stock.load_adapter(str(adapter))
    for encoder in (beside, alone):
        np.testing.assert_allclose(encoder.encode(TEXTS), stock.encode(TEXTS), rtol=0, atol=1e-5)
    assert beside.settings.direction == "causal"


def test_an_adapter_that_lost_its_base(tiny_llama_folder: Path, tmp_path: Path) -> None:
    expected = save_with_adapter(tiny_llama_folder, tmp_path / "stock")
    amend(tmp_path / "stock" / "adapter_config.json", base_model_name_or_path="./gone")
    with pytest.raises(DataError, match=r"was trained on \./gone, which is not here: [\s\S]*as base="):
        Encoder.from_pretrained(tmp_path / "stock")
    found = Encoder.from_pretrained(tmp_path / "stock", base=tiny_llama_folder)
    np.testing.assert_allclose(found.encode(TEXTS), expected, rtol=0, atol=1e-6)


def test_a_base_that_sees_both_ways_only_in_part_is_refused(tiny_llama_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, StableLmConfig, StableLmForCausalLM

    base = tmp_path / "stablelm"
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = StableLmConfig(vocab_size=501, num_key_value_heads=4, initializer_range=0.12, **shape)
    StableLmForCausalLM(config).save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny_llama_folder).save_pretrained(base)
    save_with_adapter(base, tmp_path / "stock")
    amend(base / "config.json", is_causal=False)
    with pytest.raises(ConversionError, match=r"still hides the future: layers\.0\.self_attn"):
        Encoder.from_pretrained(tmp_path / "stock")
