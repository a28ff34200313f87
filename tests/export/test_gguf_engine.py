"""Parity: llama.cpp itself gives the bidirectional vectors, clearly not the causal ones, for every family.

It stands in build/llama-cpp, which `python scripts/llama_cpp_env.py` builds once; run with `-m engine`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from llama_families import CHANGES, WINDOW, replanted, save_encoder, tokenizer
from transformers import PreTrainedTokenizerFast

from bothways import Encoder
from bothways.errors import ConfigError, DataError, VerificationError
from bothways.export import export, made_of
from bothways.export.engines.gguf import VARIABLE, GgufEngine, interpreter
from bothways.export.verify import verify

PYTHON = Path(__file__).resolve().parents[2] / "build" / "llama-cpp" / "bin" / "python"
pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]
Q8_0 = 0.998
"""Lowest cosine at q8_0 of these random models, whose activations llama.cpp rounds to 8 bits, too."""


@pytest.fixture(scope="module", autouse=True)
def _llama_cpp() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if VARIABLE not in os.environ:
            patch.setenv(VARIABLE, str(PYTHON))
        try:
            interpreter()
        except ConfigError as error:
            pytest.skip(f"{error} `python scripts/llama_cpp_env.py` builds it.")
        yield


@pytest.fixture(scope="module")
def words(real_texts: list[str]) -> PreTrainedTokenizerFast:
    return tokenizer(real_texts[:200], "words")


@pytest.mark.parametrize("name", CHANGES)
def test_it_is_bidirectional(name: str, words: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    folder = save_encoder(name, tmp_path, words)
    for number_format, lowest in {"f32": 0.9999, "f16": 0.9999}.items():
        out = tmp_path / f"{number_format}.gguf"
        verdict = export(folder, "gguf", out, number_format=number_format, tolerance=0.02, device="cpu")
        assert verdict.engine.startswith("llama.cpp on ")
        near = min(case.bidirectional.cosine for case in verdict.cases)
        far = min(case.causal.cosine for case in verdict.cases)
        print(f"{name} {number_format}: {near:.7f} to the bidirectional vectors, {far:.4f} to the causal ones")
        assert near >= lowest
        assert far < 0.95
        names = " ".join(case.name for case in verdict.cases)
        assert (f"beyond the window of {WINDOW // 2 + 1}" in names) == (name == "gemma3_text")


@pytest.mark.parametrize("name", CHANGES)
def test_q8_0(name: str, words: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    folder = save_encoder(name, tmp_path, words)
    verdict = export(folder, "gguf", tmp_path / "a.gguf", number_format="q8_0", tolerance=0.05, device="cpu")
    near = min(case.bidirectional.cosine for case in verdict.cases)
    print(f"{name} q8_0: {near:.6f}")
    assert near >= Q8_0


@pytest.mark.parametrize(
    ("name", "rope"),
    [
        ("qwen3", {"rope_type": "linear", "factor": 2.0}),
        ("llama", {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}),
        (
            "llama",
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        ),
    ],
)
def test_stretched_positions(
    name: str, rope: dict[str, object], words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder = save_encoder(name, tmp_path, words, rope_parameters={"rope_theta": 1e4, **rope})
    assert export(folder, "gguf", tmp_path / "a.gguf", number_format="f32", tolerance=1e-3, device="cpu").right


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_tokenizers_cut_alike(kind: str, real_texts: list[str], tmp_path: Path) -> None:
    own = tokenizer(real_texts[:200], kind)
    folder = save_encoder("llama", tmp_path, own)
    assert export(folder, "gguf", tmp_path / "a.gguf", number_format="f32", tolerance=1e-3, device="cpu").right
    engine = GgufEngine(tmp_path / "a.gguf")
    texts = [*real_texts[200:260], "Žluťoučký kůň, 42 km; 日本語 🦙", "a  b\t c\n\nd", "it's WE'LL 1234567"]
    assert engine.token_ids(texts) == [list(own(text).input_ids) for text in texts]
    engine.close()


def test_a_file_that_says_causal_is_found_out(words: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    folder = save_encoder("qwen3", tmp_path, words)
    export(folder, "gguf", tmp_path / "a.gguf", device="cpu")
    assert made_of(tmp_path / "a.gguf") == folder
    causal = GgufEngine(replanted(tmp_path / "a.gguf", tmp_path / "causal.gguf", attention__causal=True))
    verdict = verify(causal, folder, device="cpu")
    assert verdict.matches == "causal"
    with pytest.raises(VerificationError, match=r"but the folder's encoder is bidirectional"):
        verdict.require()
    causal.close()
    last = GgufEngine(replanted(tmp_path / "a.gguf", tmp_path / "last.gguf", pooling_type=3))
    assert "last-token pooling" in verify(last, folder, device="cpu").sentence()
    last.close()


def test_a_file_that_it_does_not_expect_ends_no_process_of_ours(words: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    folder = save_encoder("qwen3", tmp_path, words)
    export(folder, "gguf", tmp_path / "a.gguf", device="cpu")
    odd = replanted(tmp_path / "a.gguf", tmp_path / "odd.gguf", attention__head_count=3)
    with pytest.raises((VerificationError, DataError), match=r"llama\.cpp (ended|does not open)"):
        GgufEngine(odd)


def test_vectors_that_are_not_scaled(words: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    folder = save_encoder("qwen2", tmp_path, words)
    own = Encoder.from_pretrained(folder, device="cpu")
    object.__setattr__(own.settings, "normalize", False)
    own.save_pretrained(tmp_path / "unscaled", head=False)
    verdict = export(tmp_path / "unscaled", "gguf", tmp_path / "a.gguf", number_format="f32", device="cpu")
    assert verdict.right
    assert not verdict.notes
