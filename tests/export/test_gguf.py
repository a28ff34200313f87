"""Contract: a GGUF file has both keys and the encoder's numbers, and what llama.cpp computes otherwise is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from llama_families import CHANGES, WINDOW, replanted, save_decoder, save_encoder, tokenizer
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bothways import Encoder, convert
from bothways.cli import main
from bothways.errors import ConfigError, VerificationError
from bothways.export import export, gguf
from bothways.export.engines.gguf import VARIABLE, GgufEngine
from bothways.export.gguf_file import GgufFile, ReadBack
from bothways.export.gguf_model import family_of, places
from bothways.export.gguf_tokens import vocabulary
from bothways.loading import EMBEDDED

Pieces = dict[str, PreTrainedTokenizerFast]


@pytest.fixture(autouse=True)
def _without_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests are of what can be told without the engine; the engine has tests of its own."""
    monkeypatch.setattr("bothways.export.gguf.interpreter", lambda: None)
    monkeypatch.setattr("bothways.export.engines.gguf.interpreter", lambda: None)


@pytest.fixture(scope="module")
def words(real_texts: list[str]) -> PreTrainedTokenizerFast:
    return tokenizer(real_texts[:200], "words")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, words: PreTrainedTokenizerFast) -> Callable[[str], Path]:
    """The folder of a family's encoder, made once."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = save_encoder(name, tmp_path_factory.mktemp(name), words)
        return made[name]

    return folder


@pytest.fixture(scope="module")
def encoder(folders: Callable[[str], Path]) -> Encoder:
    return Encoder.from_pretrained(folders("qwen3"), device="cpu")


def changed(encoder: Encoder, **settings: Any) -> Encoder:
    return Encoder(encoder.model, encoder.tokenizer, replace(encoder.settings, **settings), encoder.record)


@pytest.mark.parametrize("name", CHANGES)
def test_every_number_and_both_keys_are_in_the_file(name: str, folders: Callable[[str], Path], tmp_path: Path) -> None:
    own = Encoder.from_pretrained(folders(name), device="cpu")
    engine = gguf.write(own, folders(name), tmp_path / "a.gguf", number_format="f32")
    assert isinstance(engine, ReadBack)
    texts = ["A short one", "and another that is somewhat longer, of 3 numbers: 17"]
    # Norms of gemma are stored plus 1, which rounds them.
    np.testing.assert_allclose(engine.embed(texts), own.encode(texts), atol=1e-6)
    file = GgufFile(tmp_path / "a.gguf")
    architectures = {"mistral": "llama", "gemma3_text": "gemma-embedding"}
    assert file.architecture == architectures.get(name, name)
    assert file.own("attention.causal") is False
    assert file.own("pooling_type") == 1
    assert file.own("context_length") == 128
    assert len(file.keys["tokenizer.ggml.tokens"]) == own.model.config.vocab_size
    extra = {"output.weight"} if name == "olmo2" else set()
    assert len(set(file.tensors) - extra) == len(own.model.state_dict())


def test_rotated_rows_are_where_llama_cpp_looks_for_them(folders: Callable[[str], Path], tmp_path: Path) -> None:
    """Rotating neighbours of the file's rows is what rotating halves of the model's is."""
    own = Encoder.from_pretrained(folders("llama"), device="cpu")
    gguf.write(own, folders("llama"), tmp_path / "a.gguf", number_format="f32").close()
    query: Any = own.model.get_submodule("layers.0.self_attn.q_proj")
    stored = GgufFile(tmp_path / "a.gguf").tensor("blk.0.attn_q.weight")
    heads, size = 2, 32
    state = np.random.default_rng(0).standard_normal(own.model.config.hidden_size)
    angles = np.arange(size // 2) * 0.37
    halves = (query.weight.detach().double().numpy() @ state).reshape(heads, size)
    pairs = (stored.astype(np.float64) @ state).reshape(heads, size)
    turned = halves[:, : size // 2] * np.cos(angles) - halves[:, size // 2 :] * np.sin(angles)
    np.testing.assert_allclose(pairs[:, ::2] * np.cos(angles) - pairs[:, 1::2] * np.sin(angles), turned, atol=1e-6)
    assert np.abs(stored - query.weight.detach().numpy()).max() > 0.1


@pytest.mark.parametrize(("number_format", "worst"), [(None, 0.99999), ("q8_0", 0.999)])
def test_half_precision_and_q8_0(
    number_format: str | None, worst: float, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    verdict = export(folders("qwen3"), "gguf", tmp_path / "a.gguf", number_format=number_format, device="cpu")
    assert verdict.right
    assert "llama.cpp itself was not run" in verdict.sentence()
    assert min(case.bidirectional.cosine for case in verdict.cases) > worst
    assert min(case.causal.cosine for case in verdict.cases) < 0.9
    reader = GGUFReader(tmp_path / "a.gguf")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["blk.0.attn_q.weight"] == (number_format or "f16").upper()
    assert kinds["blk.0.attn_norm.weight"] == kinds["blk.0.attn_q_norm.weight"] == "F32"


def test_q8_0_is_off_by_half_a_step_of_each_block(encoder: Encoder, tmp_path: Path) -> None:
    gguf.write(encoder, Path("enc"), tmp_path / "a.gguf", number_format="q8_0").close()
    own = encoder.model.state_dict()["layers.1.mlp.up_proj.weight"].numpy().reshape(-1, 32)
    found = GgufFile(tmp_path / "a.gguf").tensor("blk.1.ffn_up.weight").reshape(-1, 32)
    largest = np.abs(own).max(axis=1)
    assert (np.abs(found - own).max(axis=1) <= largest * gguf.ROUNDING["q8_0"] * 1.001).all()
    assert np.abs(found - own).max() > 0


def test_a_row_that_no_block_divides_is_half_precision() -> None:
    assert gguf.kind_of_tensor((5, 48), "q8_0") == "f16"
    assert gguf.kind_of_tensor((5, 64), "q8_0") == "q8_0"
    assert gguf.kind_of_tensor((64,), "f16") == "f32"


def test_the_window_of_gemma_3(folders: Callable[[str], Path], tmp_path: Path, words: PreTrainedTokenizerFast) -> None:
    """llama.cpp lets a token see half of the file's window to either side."""
    for windows, stored in {"native": WINDOW, "keep": 2 * WINDOW, "full": 2 * 128}.items():
        base = folders("gemma3_text").parent / "base"
        own = convert(base, dtype="float32", device="cpu", windows=windows)
        out = tmp_path / f"{windows}.gguf"
        gguf.write(own, base, out, number_format="f32").close()
        assert GgufFile(out).own("attention.sliding_window") == stored, windows
    causal = convert(base, dtype="float32", device="cpu", direction="causal")
    gguf.write(causal, base, tmp_path / "causal.gguf", number_format="f32").close()
    file = GgufFile(tmp_path / "causal.gguf")
    assert file.architecture == "gemma3"
    assert file.own("attention.sliding_window") == WINDOW
    assert file.own("attention.causal") is True


def test_pooling_is_the_encoders(encoder: Encoder, tmp_path: Path) -> None:
    for pooling, number in {"mean": 1, "cls": 2, "last": 3}.items():
        own = changed(encoder, pooling=pooling, normalize=False, max_length=77)
        gguf.write(own, Path("enc"), tmp_path / f"{pooling}.gguf").close()
        file = GgufFile(tmp_path / f"{pooling}.gguf")
        assert file.own("pooling_type") == number
        assert file.keys["bothways.normalize"] is False
        assert file.keys["bothways.max_length"] == 77


def test_a_file_without_its_key_is_caught_without_llama_cpp(
    encoder: Encoder, tmp_path: Path, folders: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    gguf.write(encoder, Path("enc"), tmp_path / "a.gguf").close()
    same = replanted(tmp_path / "a.gguf", tmp_path / "same.gguf")
    GgufFile(same).require(encoder.settings)
    keyless = replanted(tmp_path / "a.gguf", tmp_path / "keyless.gguf", attention__causal=None)
    with pytest.raises(VerificationError, match=r"lacks the key qwen3\.attention\.causal: llama\.cpp would let every"):
        GgufEngine(keyless)
    unpooled = replanted(tmp_path / "a.gguf", tmp_path / "unpooled.gguf", pooling_type=None)
    with pytest.raises(VerificationError, match=r"lacks the key qwen3\.pooling_type"):
        GgufEngine(unpooled)
    wrong = replanted(tmp_path / "a.gguf", tmp_path / "wrong.gguf", attention__causal=True)
    with pytest.raises(VerificationError, match=r"qwen3\.attention\.causal is True, the encoder's is False"):
        GgufFile(wrong).require(encoder.settings)
    with pytest.raises(ConfigError, match=r"pip install llama-cpp-python.*" + VARIABLE):
        GgufEngine(same)
    with pytest.raises(SystemExit) as left:
        main(["verify", str(keyless), "--against", str(folders("qwen3"))])
    assert left.value.code == 1
    assert "lacks the key qwen3.attention.causal" in capsys.readouterr().err


def test_a_changed_number_is_caught(encoder: Encoder, tmp_path: Path) -> None:
    gguf.write(encoder, Path("enc"), tmp_path / "a.gguf", number_format="f32").close()
    other = changed(encoder)
    other.model = convert(Path(encoder.record.base), dtype="float32", device="cpu").model
    with torch.no_grad():
        other.model.state_dict()["layers.1.self_attn.k_proj.weight"][3, 5] += 1e-3
    from gguf import MODEL_ARCH, get_tensor_name_map

    placed = places(other, family_of(other), get_tensor_name_map(MODEL_ARCH.QWEN3, 3))
    with pytest.raises(VerificationError, match=r"blk\.1\.attn_k\.weight differs from layers\.1\.self_attn\.k_proj"):
        gguf.compare_tensors(GgufFile(tmp_path / "a.gguf"), other, placed)


def test_nothing_is_left_of_what_is_refused(folders: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'number_format="q4_0" is not known\. Did you mean "q8_0"\?'):
        export(folders("qwen3"), "gguf", tmp_path / "a.gguf", number_format="q4_0", device="cpu")
    assert not list(tmp_path.iterdir())


def test_what_llama_cpp_cannot_pool(encoder: Encoder) -> None:
    for settings, said in (
        ({"pooling": "weighted_mean"}, r'llama\.cpp has no pooling="weighted_mean", only mean, cls, last'),
        ({"pool_over": "text"}, r'pools over all tokens, .*\(pool_over="text"\)'),
    ):
        with pytest.raises(ConfigError, match=said):
            gguf.write(changed(encoder, **settings), Path("enc"), Path("unwritten.gguf"))


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("mistral", {"sliding_window": 20}, r"it has no attention window there, here 20 tokens of the 128"),
        ("smollm3", {"no_rope_layers": [1, 0, 1, 0]}, r"every fourth layer has no rotary positions there"),
        ("llama", {"hidden_act": "gelu"}, r"its activation is silu, here gelu"),
        ("qwen2", {"head_dim": 16}, r"a head has hidden_size / num_attention_heads = 32 numbers there, here head_dim"),
        ("gemma3_text", {"query_pre_attn_scalar": 64}, r"it scales queries by head_dim=32, here .*=64"),
        (
            "qwen3",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            r'it has no rope_type "dynamic" there, only default, linear, yarn',
        ),
        ("qwen3", {"attention_bias": True}, None),
        ("mistral", {"sliding_window": 128}, None),
    ],
)
def test_what_it_would_compute_otherwise(
    name: str, changes: dict[str, Any], said: str | None, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder = save_decoder(name, tmp_path / "base", words, **changes)
    own = convert(folder, dtype="float32", device="cpu")
    if said is None:
        family_of(own)
    else:
        with pytest.raises(ConfigError, match=rf"llama\.cpp computes {name} otherwise than this encoder: {said}"):
            family_of(own)


def test_other_families_are_refused_by_name(words: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    CHANGES_OF = {"phi3": {}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llama_families.CHANGES", {**CHANGES, **CHANGES_OF})
        folder = save_decoder("phi3", tmp_path / "base", words)
    own = convert(folder, dtype="float32", device="cpu")
    with pytest.raises(ConfigError, match=r"phi3 is not among the families .*: llama, mistral, qwen2, qwen3, gemma,"):
        gguf.write(own, folder, tmp_path / "a.gguf")


def retold(own: PreTrainedTokenizerFast, change: Callable[[Tokenizer], None]) -> PreTrainedTokenizerFast:
    backend = Tokenizer.from_str(own.backend_tokenizer.to_str())
    change(backend)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def test_the_way_a_text_is_split_has_a_name(words: PreTrainedTokenizerFast, real_texts: list[str]) -> None:
    assert vocabulary(words, 504).pre == "qwen2"
    by_bytes = tokenizer(real_texts[:50], "bytes", 300)
    found = vocabulary(by_bytes, 304)
    assert (found.model, found.pre) == ("gpt2", "gpt-2")
    assert (found.first, found.last, found.pad) == (1, None, 2)
    assert found.tokens[300:] == ["[PAD300]", "[PAD301]", "[PAD302]", "[PAD303]"]
    digits = retold(by_bytes, _digits)
    assert vocabulary(digits, 304).pre == "smollm"
    pieces = vocabulary(tokenizer(real_texts[:50], "pieces", 300), 560)
    assert (pieces.model, pieces.merges, pieces.space_prefix) == ("llama", [], True)
    made = dict(zip(pieces.tokens, pieces.scores, strict=True))
    assert max(made.values()) == 0.0
    assert min(made.values()) == made["a"]


def _digits(backend: Tokenizer) -> None:
    parts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    backend.pre_tokenizer = pre_tokenizers.Sequence(parts)


def _prefix(backend: Tokenizer) -> None:
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def _odd(backend: Tokenizer) -> None:
    split = pre_tokenizers.Split(Regex("[aeiou]"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])


def _lower(backend: Tokenizer) -> None:
    backend.normalizer = normalizers.Lowercase()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_prefix, r"puts a space before a text \(add_prefix_space\), which llama\.cpp's byte-level tokenizer cannot"),
        (_odd, r'has no name for the way this tokenizer splits a text: .*"Regex": "\[aeiou\]".*Export to onnx'),
        (_lower, r"does not know the normalizer Lowercase"),
    ],
)
def test_a_tokenizer_that_llama_cpp_does_not_have(
    change: Callable[[Tokenizer], None], said: str, words: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(ConfigError, match=said):
        vocabulary(retold(words, change), 504)


def test_the_embedded_decoders_tokenizer_is_none_of_llama_cpps() -> None:
    """It puts a space before every digit and what follows one, which no named pre-tokenizer does."""
    own = convert(EMBEDDED, dtype="float32", device="cpu")
    assert own.tokenizer.tokenize("in 42km") == ["Ġin", "Ġ", "Ġ4", "Ġ2", "Ġk", "m"]
    with pytest.raises(ConfigError, match=r"puts a space before a text"):
        gguf.write(own, EMBEDDED, Path("unwritten.gguf"))


def test_the_record_says_what_was_found(folders: Callable[[str], Path], tmp_path: Path) -> None:
    out = tmp_path / "a.gguf"
    with pytest.raises(SystemExit) as left:
        main(["export", str(folders("qwen2")), "--to", "gguf", "--out", str(out), "--device", "cpu"])
    assert left.value.code == 0
    facts = json.loads((tmp_path / "a.gguf.export.json").read_text())
    assert facts["to"] == "gguf"
    assert facts["verdict"]["matches"] == "bidirectional"
