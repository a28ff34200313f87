"""Contract: the exported sentence-transformers folder has what that engine needs, is right in it, and nothing more."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from bidirectional.tiny import tiny
from safetensors import safe_open
from sentence_transformers import SentenceTransformer

from bothways import MNTP, convert, mntp
from bothways.errors import ConfigError
from bothways.export import export

PROMPTS = {"query": "Find the passage that answers this: "}
SIZES = {"vocab_size": 501, "max_position_embeddings": 256, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 1}


# peft 0.21 asks transformers by a name that 5.23 has deprecated.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning", "ignore:.*were cut")
def test_head_and_adapter_stay_behind(tiny_untied_folder: Path, real_texts: list[str], tmp_path: Path) -> None:
    encoder = convert(tiny_untied_folder, dtype="float32", device="cpu", prompts=PROMPTS)
    settings = MNTP(steps=1, batch_size=4, block_size=32, held_out_items=3, precision="fp32", lora_r=4)
    encoder = mntp(encoder, real_texts[:20], settings, show_progress=False)
    encoder.save_pretrained(tmp_path / "enc")
    verdict = export(tmp_path / "enc", "sentence-transformers", tmp_path / "out", device="cpu")
    assert (verdict.matches, verdict.right) == ("bidirectional", True)
    assert (tmp_path / "enc" / "adapter").is_dir()
    assert not (tmp_path / "out" / "adapter").exists()
    for name, has in (("enc", True), ("out", False)):
        with safe_open(tmp_path / name / "model.safetensors", framework="pt") as tensors:
            assert ("lm_head.weight" in tensors.keys()) == has  # noqa: SIM118 (it is no mapping)
    assert json.loads((tmp_path / "out" / "bothways.json").read_text())["head"] == {}
    model = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    np.testing.assert_allclose(model.encode_query(["a", "b c"]), encoder.encode_query(["a", "b c"]), rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*were cut")
def test_what_needs_code_brings_it_and_is_verified_too(tiny_llama_folder: Path, tmp_path: Path) -> None:
    tiny("bloom", "eager", head=True, **SIZES).save_pretrained(tmp_path / "bloom")
    for file in tiny_llama_folder.glob("*token*"):
        shutil.copy(file, tmp_path / "bloom" / file.name)
    convert(tmp_path / "bloom", dtype="float32", device="cpu").save_pretrained(tmp_path / "enc")
    verdict = export(tmp_path / "enc", "sentence-transformers", tmp_path / "out", device="cpu")
    assert (verdict.matches, verdict.right) == ("bidirectional", True)
    assert (tmp_path / "out" / "two_way_module.py").exists()


def test_a_number_format_is_refused(tiny_llama_folder: Path, tmp_path: Path) -> None:
    convert(tiny_llama_folder, device="cpu").save_pretrained(tmp_path / "enc")
    with pytest.raises(ConfigError, match="--number-format int8: a sentence-transformers folder keeps"):
        export(tmp_path / "enc", "sentence-transformers", tmp_path / "out", number_format="int8", device="cpu")
    assert not (tmp_path / "out").exists()
