"""Contract: what needs code is right in sentence-transformers with bothways, and refused without it, never causal."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from bothways import Encoder, convert
from bothways.artefact import brings_our_module
from bothways.bidirectional.gate import Gate
from bothways.errors import ConfigError, ConversionError
from bothways.opening import RESAVED
from bothways.training.teacher import Teacher

SHAPE = {
    "vocab_size": 501,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 56,
    "max_position_embeddings": 256,
    "initializer_range": 0.12,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_dim": 48, "conv_dim": 48},
    "mamba": {"state_size": 8, "time_step_rank": 4},
    "bloom": {},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 40},
    "openai-gpt": {"n_positions": 256, "n_embd": 48, "n_layer": 2, "n_head": 4},
}
PROMPTS = {"query": "Find the passage that answers this: ", "document": "Passage: "}
TEXTS = ["How do I open a compressed file?", "short", "The zipfile module reads and writes archives of files."]
WITHOUT = """
import sys
sys.modules["bothways"] = None
from sentence_transformers import SentenceTransformer
for trust in (False, True):
    try:
        SentenceTransformer(sys.argv[1], device="cpu", trust_remote_code=trust)
    except (ValueError, ImportError) as error:
        print(type(error).__name__, error)
"""


@pytest.fixture(autouse=True)
def _modules_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers copies code of models to a cache."""
    for room in ("transformers.dynamic_module_utils", "transformers.utils.hub"):
        monkeypatch.setattr(f"{room}.HF_MODULES_CACHE", str(tmp_path / "modules"), raising=False)


@pytest.fixture(params=FAMILIES)
def encoder(request: pytest.FixtureRequest, tiny_llama_folder: Path, tmp_path: Path) -> Encoder:
    return made(str(request.param), tiny_llama_folder, tmp_path)


def made(name: str, tokenizer_of: Path, tmp_path: Path) -> Encoder:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[name](**{**SHAPE, **FAMILIES[name]})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / name)
    for file in tokenizer_of.glob("*token*"):
        shutil.copy(file, tmp_path / name / file.name)
    found = convert(tmp_path / name, prompts=PROMPTS, max_length=99)
    found.save_pretrained(tmp_path / "enc")
    return found


def opened(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu", trust_remote_code=True)


def same(model: SentenceTransformer, encoder: Encoder) -> None:
    """Padded, alone, and with each prompt."""
    for own, stock in (
        (encoder.encode(TEXTS), model.encode(TEXTS)),
        (encoder.encode(TEXTS), np.stack([model.encode(text) for text in TEXTS])),
        (encoder.encode_query(TEXTS), model.encode_query(TEXTS)),
        (encoder.encode_document(TEXTS), model.encode_document(TEXTS)),
    ):
        np.testing.assert_allclose(stock, own, rtol=0, atol=1e-6)


def test_it_is_right_with_bothways_and_saved_again_and_opened_by_both(encoder: Encoder, tmp_path: Path) -> None:
    model = opened(tmp_path / "enc")
    assert type(model[0]).__name__ == "TwoWayTransformer"
    assert model.max_seq_length == 99
    same(model, encoder)
    same(model, Encoder.from_pretrained(tmp_path / "enc"))

    model.max_seq_length = 77
    model.prompts["query"] = "Question: "
    model.save(str(tmp_path / "again"))
    assert (tmp_path / "again" / "two_way_module.py").exists()
    again = Encoder.from_pretrained(tmp_path / "again")
    assert again.settings.max_length == 77
    assert again.settings.prompts == {**PROMPTS, "query": "Question: "}
    assert [stage["stage"] for stage in again.record.stages] == ["convert", RESAVED]
    same(opened(tmp_path / "again"), again)
    np.testing.assert_allclose(again.encode(TEXTS), encoder.encode(TEXTS), rtol=0, atol=1e-6)


def test_without_bothways_or_without_trust_it_is_refused_never_causal(tiny_llama_folder: Path, tmp_path: Path) -> None:
    made("bloom", tiny_llama_folder, tmp_path)
    command = [sys.executable, "-c", WITHOUT, str(tmp_path / "enc")]
    untrusted, without = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[::2][
        :2
    ]
    assert untrusted.startswith("ValueError")
    assert "two_way_module.TwoWayTransformer" in untrusted
    assert without.startswith("ImportError This encoder sees both ways only with the code of bothways")
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        SentenceTransformer(str(tmp_path / "enc"), device="cpu")


def test_the_card_and_the_record_say_so(tiny_llama_folder: Path, tmp_path: Path) -> None:
    made("gpt_neo", tiny_llama_folder, tmp_path)
    card = (tmp_path / "enc" / "README.md").read_text()
    notes = json.loads((tmp_path / "enc" / "bothways.json").read_text())["notes"]
    for text in (card, notes[0]):
        assert "trust_remote_code=True" in text
    for engine in ("vLLM", "llama.cpp", "Text Embeddings Inference"):
        assert engine not in card


# What sentence-transformers' trainer asks of other libraries is not ours.
@pytest.mark.filterwarnings("ignore")
def test_it_learns_through_sentence_transformers(tiny_llama_folder: Path, tmp_path: Path) -> None:
    from datasets import Dataset

    made("lfm2", tiny_llama_folder, tmp_path)
    model = opened(tmp_path / "enc")
    gates = [module for module in model.modules() if isinstance(module, Gate)]
    assert gates
    before = [gate.share().detach().clone() for gate in gates]
    pairs = Dataset.from_dict({"anchor": TEXTS * 4, "positive": [text.upper() for text in TEXTS] * 4})
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path / "trainer"), max_steps=3, per_device_train_batch_size=4, learning_rate=0.05, report_to="none",
        save_strategy="no", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    SentenceTransformerTrainer(model, arguments, train_dataset=pairs, loss=MultipleNegativesRankingLoss(model)).train()
    after = [gate.share().detach() for gate in gates]
    assert all((abs(now - then) > 1e-4).any() for now, then in zip(after, before, strict=True)), "gates learn too"
    model.save(str(tmp_path / "trained"))
    trained = Encoder.from_pretrained(tmp_path / "trained")
    same(opened(tmp_path / "trained"), trained)
    np.testing.assert_allclose(trained.encode(TEXTS), model.encode(TEXTS), rtol=0, atol=1e-6)


def test_a_folder_that_lost_its_record_is_refused_by_both(tiny_llama_folder: Path, tmp_path: Path) -> None:
    made("bloom", tiny_llama_folder, tmp_path)
    (tmp_path / "enc" / "bothways.json").unlink()
    for open_it in (Encoder.from_pretrained, opened):
        with pytest.raises(ConversionError, match=r"needs code to see both ways.*bothways\.json, .* is missing"):
            open_it(tmp_path / "enc")


def test_it_comes_without_a_question_from_an_encoder_in_memory(tiny_llama_folder: Path, tmp_path: Path) -> None:
    encoder = made("lfm2", tiny_llama_folder, tmp_path)
    same(encoder.to_sentence_transformer(), encoder)


def test_only_our_own_code_is_run_without_asking(tiny_llama_folder: Path, tmp_path: Path) -> None:
    """As a teacher of `distil` is opened."""
    encoder = made("bloom", tiny_llama_folder, tmp_path)
    teacher = Teacher(tmp_path / "enc", device="cpu")
    np.testing.assert_allclose(teacher.teach(TEXTS).vectors, encoder.encode(TEXTS), rtol=0, atol=1e-6)
    module = tmp_path / "enc" / "two_way_module.py"
    module.write_text(module.read_text() + "raise SystemExit\n")
    assert not brings_our_module(tmp_path / "enc")
    with pytest.raises(ConfigError, match="cannot be opened as a teacher"):
        Teacher(tmp_path / "enc", device="cpu")


def test_other_weights_are_not_what_the_certificate_says(tiny_llama_folder: Path, tmp_path: Path) -> None:
    made("lfm2", tiny_llama_folder, tmp_path)
    record = json.loads((tmp_path / "enc" / "bothways.json").read_text())
    record["certificate"]["modules"][0]["share"] = 0.4
    (tmp_path / "enc" / "bothways.json").write_text(json.dumps(record))
    with pytest.raises(ConversionError, match="not what its certificate says"):
        opened(tmp_path / "enc")
