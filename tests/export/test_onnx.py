"""Parity and contract: an ONNX file gives torch's vectors for any batch; a wrong one is neither written nor read."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bothways import MNTP, Encoder, convert, make_bidirectional, mntp
from bothways.corpus.fingerprint import encoder_fingerprint
from bothways.encoding.reading import Item
from bothways.engines import ONNX_RUNTIME
from bothways.errors import ConfigError, ConversionError, DataError, VerificationError
from bothways.export import export, onnx
from bothways.export.engines import open_engine
from bothways.export.engines.onnx import OnnxEngine
from bothways.export.verify import verify
from bothways.provenance import EncoderSettings, Record
from bothways.runners import ExportedEncoder
from bothways.runners.onnx import OnnxRunner
from bothways.runners.runner import computed
from bothways.serve import Serve
from bothways.serve.batcher import Batcher
from bothways.serve.metrics import Metrics
from bothways.text import Features

SHAPES = [(1, 1, 0), (2, 3, 0), (3, 17, 6), (5, 33, 7), (1, 64, 0)]
"""Texts, tokens, and by how many each text is shorter than the one before."""
TEXTS = [
    "How do I open a file?",
    "a",
    "",
    "The signature of the certificate is invalid. " * 9,
    "How do I open a file?",
    "Zwölf Boxkämpfer",
]


def batch(encoder: Encoder, rows: int, tokens: int, step: int) -> Features:
    ids = torch.randint(2, 400, (rows, tokens))
    mask = torch.arange(tokens) < torch.tensor([max(1, tokens - step * row) for row in range(rows)])[:, None]
    pooled = mask.clone()
    if encoder.settings.pool_over == "text" and tokens > 1:
        pooled[:, 0] = False
        pooled[:, 0] = ~pooled.any(dim=1)
    return Features(ids, mask, pooled)


@pytest.fixture(scope="module")
def opened(onnx_folder: Path) -> ExportedEncoder:
    return Encoder.from_pretrained(onnx_folder, backend="onnx")


@pytest.fixture(scope="module")
def causal_file(tmp_path_factory: pytest.TempPathFactory, tiny_llama_folder: Path) -> Path:
    """With its weights in a file of their own, as where they have more than 2 GiB."""
    file = tmp_path_factory.mktemp("causal") / "model.onnx"
    encoder = convert(tiny_llama_folder, direction="causal", dtype="float32", device="cpu", max_length=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx, "LARGEST", 0)
        onnx.write_file(encoder, file)
    assert {path.name for path in file.parent.iterdir()} == {"model.onnx", "model.onnx.data"}
    return file


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory, onnx_folder: Path, causal_file: Path) -> Path:
    """An exported folder in which a causal file stands in the place of the right one."""
    folder = tmp_path_factory.mktemp("planted") / "enc-onnx"
    shutil.copytree(onnx_folder, folder)
    for path in causal_file.parent.iterdir():
        shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def int8_folder(tmp_path_factory: pytest.TempPathFactory, own: Encoder, own_folder: Path, onnx_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("int8") / "enc-int8"
    folder.mkdir()
    shutil.copy(onnx_folder / "model.onnx", folder)
    onnx.quantise(folder / "model.onnx")
    onnx.complete(own, own_folder, folder, "onnx", "int8")
    return folder


def test_the_folder_is_complete(onnx_folder: Path, own_folder: Path) -> None:
    files = {"model.onnx", "config.json", "tokenizer.json", "tokenizer_config.json", "bothways.json"}
    assert {path.name for path in onnx_folder.iterdir()} == {*files, "fingerprint.json", "export.json"}
    assert not [path for path in onnx_folder.parent.iterdir() if path.name.startswith(".")]
    mine, its = (json.loads((folder / "bothways.json").read_text()) for folder in (own_folder, onnx_folder))
    # Measured again when it was opened.
    measured = ("head", "notes", "certificate")
    assert {**its, **{name: mine[name] for name in measured}} == mine
    assert its["certificate"]["direction"] == "bidirectional"


@pytest.mark.parametrize(("rows", "tokens", "step"), SHAPES)
def test_vectors_and_states_are_torchs(
    rows: int, tokens: int, step: int, own: Encoder, opened: ExportedEncoder
) -> None:
    features = batch(own, rows, tokens, step)
    found = computed(opened.runner, features)
    with torch.no_grad():
        states = own.hidden_states(features)
        wanted = own.pooled(states, features.pool_mask)
    real = features.attention_mask.numpy()
    assert found.vectors.shape == (rows, own.dim)
    assert np.abs(found.vectors - wanted.numpy()).max() <= 1e-5
    assert np.abs(found.states[real] - states.numpy()[real]).max() <= 1e-5 * float(states.abs().max())


@pytest.mark.parametrize(
    "ask",
    [
        {},
        {"instruction": "Find what is asked for"},
        {"instruction": [None, "one", "two", None, "one", None]},
        {"truncate_dim": 7},
        {"precision": "int8"},
        {"overflow": "chunk"},
        {"as_tensor": True, "tokens_per_batch": 9},
        {"output": "token"},
    ],
)
@pytest.mark.filterwarnings("ignore:1 of 6 texts have more than max_length=64")
def test_encode_is_that_of_torch(ask: dict[str, Any], own: Encoder, opened: ExportedEncoder) -> None:
    found, wanted = (encoder.encode(TEXTS, **ask) for encoder in (opened, own))
    assert type(found) is type(wanted)
    if ask.get("output") == "token":
        assert [(item.ids, item.spans) for item in found] == [(item.ids, item.spans) for item in wanted]
        found, wanted = (np.concatenate([item.vectors for item in items]) for items in (found, wanted))
    slack = 1 if ask.get("precision") == "int8" else 1e-5 * float(abs(wanted).max())
    assert (
        float(
            abs(found.astype(float) - wanted.astype(float)).max()
            if isinstance(found, np.ndarray)
            else (found - wanted).abs().max()
        )
        <= slack
    )
    assert found.shape == wanted.shape


def test_prompts_single_texts_and_none_are_those_of_torch(own: Encoder, opened: ExportedEncoder) -> None:
    for name in ("encode_query", "encode_document"):
        found, wanted = (getattr(encoder, name)(TEXTS[:3]) for encoder in (opened, own))
        assert np.abs(found - wanted).max() <= 1e-5
    assert np.abs(opened.encode_query("a") - opened.encode("a")).max() > 1e-2
    assert np.abs(opened.encode("a") - own.encode("a")).max() <= 1e-5
    assert opened.encode([]).shape == (0, own.dim)
    assert opened.dtype == torch.float32
    assert opened.dtype_choice is None
    with pytest.raises(ConfigError, match=r"truncate_dim=57, but the encoder's vectors have 56 numbers"):
        opened.encode("a", truncate_dim=57)
    with pytest.raises(DataError, match=r"texts\[3\].*has more than max_length=64 tokens"):
        opened.encode(TEXTS, overflow="error")


@pytest.mark.usefixtures("unchecked")
def test_what_needs_torch_is_refused_with_the_way_out(opened: ExportedEncoder) -> None:
    way_out = r'needs torch\'s model, and backend="onnx" has none.* Open the folder that it was exported from'
    with pytest.raises(ConfigError, match=way_out):
        opened(["a text"])
    for name in ("model", "head", "save_pretrained", "embed"):
        with pytest.raises(ConfigError, match=f'^"{name}" {way_out}'):
            getattr(opened, name)
    stage: Any = mntp
    with pytest.raises(ConfigError, match=way_out):
        stage(opened, TEXTS, MNTP(steps=1))
    assert not hasattr(opened, "model")
    with pytest.raises(AttributeError, match="ExportedEncoder has no attribute 'modle'"):
        getattr(opened, "modle")  # noqa: B009


@pytest.mark.usefixtures("unchecked")
def test_what_a_file_cannot_be_opened_with_is_refused(onnx_folder: Path, own_folder: Path) -> None:
    given: Any = Encoder.from_pretrained
    for more, message in (
        ({"dtype": "bfloat16"}, r'dtype="bfloat16" with backend="onnx": model\.onnx computes in .*, float32'),
        ({"attn_implementation": "eager"}, r'attn_implementation with backend="onnx"'),
        ({"device": "cuda"}, r'device="cuda" with backend="onnx": it computes on the CPU'),
        ({"backend": "onx"}, r'backend="onx" is not known\. Did you mean "onnx"\?'),
    ):
        with pytest.raises(ConfigError, match=message):
            given(onnx_folder, **{"backend": "onnx", **more})
    with pytest.raises(DataError, match=r"has no model\.onnx.*bothways export .*enc --to onnx --out DIR"):
        given(own_folder, backend="onnx")
    with pytest.raises(DataError, match=r'was exported for onnx and has no weights.*Open it with backend="onnx"'):
        given(onnx_folder)


def test_without_the_package_the_extra_is_named(onnx_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"needs onnxruntime: pip install bothways\[onnx\]"):
        Encoder.from_pretrained(onnx_folder, backend="onnx")


def test_a_causal_file_in_its_place_is_caught(planted: Path, own_folder: Path, own: Encoder, causal_file: Path) -> None:
    with pytest.raises(DataError, match=r"is not what was exported: its file gives differences of up to .* Restore"):
        Encoder.from_pretrained(planted, backend="onnx")
    for target in (str(planted), str(planted / "model.onnx")):
        verdict = verify(open_engine(target), own_folder)
        assert verdict.matches == "causal"
        with pytest.raises(VerificationError):
            verdict.require()
    # Nor would it have been written.
    with pytest.raises(ConversionError, match=r"llama cannot be exported to ONNX: for 2 texts of at most 3 tokens"):
        onnx._require_same(own, causal_file)


def test_another_tokenizer_or_a_damaged_folder_is_refused(
    onnx_folder: Path, tiny_untied_folder: Path, tmp_path: Path
) -> None:
    def changed(name: str) -> Path:
        return Path(shutil.copytree(onnx_folder, tmp_path / name))

    folder = changed("tokenizer")
    shutil.copy(tiny_untied_folder / "tokenizer.json", folder)
    with pytest.raises(DataError, match="is not what was exported"):
        Encoder.from_pretrained(folder, backend="onnx")
    folder = changed("bytes")
    (folder / "model.onnx").write_bytes(b"no model")
    with pytest.raises(DataError, match=r"model\.onnx: .* Export again: bothways export"):
        Encoder.from_pretrained(folder, backend="onnx")
    folder = changed("nothing")
    (folder / "fingerprint.json").unlink()
    with pytest.raises(DataError, match=r"fingerprint\.json is missing: nothing says which vectors"):
        Encoder.from_pretrained(folder, backend="onnx")
    (folder / "fingerprint.json").write_text('{"format": 1, "backend": "onnx"}')
    with pytest.raises(DataError, match=r"fingerprint\.json: an entry is missing or unknown \('vectors'\)"):
        Encoder.from_pretrained(folder, backend="onnx")


def test_a_corpus_job_notices_another_file(onnx_folder: Path, planted: Path) -> None:
    assert encoder_fingerprint(onnx_folder) != encoder_fingerprint(planted)
    assert encoder_fingerprint(onnx_folder) == encoder_fingerprint(onnx_folder)


def test_int8_is_near_and_smaller(int8_folder: Path, onnx_folder: Path, own: Encoder, own_folder: Path) -> None:
    encoder = Encoder.from_pretrained(int8_folder, backend="onnx")
    assert encoder.dtype == torch.int8
    cosines = (encoder.encode(TEXTS[:3]) * own.encode(TEXTS[:3])).sum(axis=1)
    assert 0.99 < cosines.min() < 1 - 1e-6
    small, large = ((folder / "model.onnx").stat().st_size for folder in (int8_folder, onnx_folder))
    assert small < 0.8 * large
    assert b"MatMulInteger" in (int8_folder / "model.onnx").read_bytes()
    engine = OnnxEngine(int8_folder)
    assert engine.number_format == "int8"
    assert verify(engine, own_folder).right


def test_large_weights_stay_in_a_file_of_their_own(causal_file: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(causal_file.parent, tmp_path / "large"))
    before = (folder / "model.onnx.data").stat().st_size
    onnx.quantise(folder / "model.onnx")
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "model.onnx.data"}
    assert (folder / "model.onnx.data").stat().st_size < before
    runner = OnnxRunner(folder / "model.onnx", "int8")
    assert runner.run(*[np.ones((3, 5), dtype=np.int64)] * 3).vectors.shape == (3, 56)


def test_nothing_is_overwritten_and_nothing_half_written_stays(
    own_folder: Path, onnx_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="exists"):
        export(own_folder, "onnx", onnx_folder)
    with pytest.raises(ConfigError, match=r'number format "int4" is not known\. Did you mean "int8"\?'):
        export(own_folder, "onnx", tmp_path / "out", number_format="int4")

    def interrupted(encoder: Encoder, file: Path) -> None:
        file.write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(onnx, "write_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(own_folder, "onnx", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_two_way_recurrence_is_refused_by_name(own: Encoder, tmp_path: Path, tiny: Any) -> None:
    model = tiny("lfm2")
    make_bidirectional(model)
    encoder = Encoder(model, own.tokenizer, EncoderSettings(), Record(base="lfm2"))
    with pytest.raises(
        ConversionError, match=r"lfm2 has sub-modules that are run .* as layers\.0\.conv.*bothways serve"
    ):
        onnx.write_file(encoder, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


FAMILIES = (
    *("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "phi3", "gpt2", "gpt_neox", "opt"),
    *("olmo2", "granite", "smollm3", "gpt_neo", "stablelm", "falcon", "bloom", "mpt", "openai-gpt", "gptj", "biogpt"),
)


def test_the_server_computes_with_it(opened: ExportedEncoder, real_texts: list[str]) -> None:
    batcher = Batcher(opened, Serve(), Metrics())
    batcher.start()
    texts = [text[:90] for text in real_texts[:7]]
    items = [Item((row,)) for row in opened.tokenise(texts)]
    found = batcher.submit(items).result(timeout=60)
    batcher.stop(10)
    assert np.abs(found - opened.encode(texts)).max() < 1e-5


def test_the_families_are_those_of_the_table() -> None:
    assert set(FAMILIES) == set(ONNX_RUNTIME.families)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_exported_right(name: str, own: Encoder, tmp_path: Path, tiny: Any) -> None:
    from tiny import TINY

    backend = "sdpa" if "sdpa" in TINY[name].backends else "eager"
    model = tiny(name, backend) if name in TINY else tiny(name, "eager")
    make_bidirectional(model)
    encoder = Encoder(model, own.tokenizer, EncoderSettings(max_length=64), Record(base=name))
    onnx.write_file(encoder, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").exists()


UNFOLLOWED = ("mixtral", "gpt_oss", "llama4_text")


@pytest.mark.slow
@pytest.mark.parametrize("name", UNFOLLOWED)
def test_a_family_that_the_exporter_does_not_follow_is_refused(
    name: str, own: Encoder, tmp_path: Path, tiny: Any
) -> None:
    model = tiny(name, "eager")
    make_bidirectional(model)
    encoder = Encoder(model, own.tokenizer, EncoderSettings(max_length=64), Record(base=name))
    with pytest.raises(ConversionError, match=f"{name} cannot be exported to ONNX: torch's exporter does not follow"):
        onnx.write_file(encoder, tmp_path / "model.onnx")


@pytest.mark.slow
def test_the_embedded_decoder_is_exported_right(tmp_path: Path, real_texts: list[str]) -> None:
    encoder = convert("embedded", dtype="float32", device="cpu")
    encoder.save_pretrained(tmp_path / "enc")
    for number_format, slack in ((None, 1e-5), ("int8", None)):
        out = tmp_path / f"out-{number_format}"
        assert export(tmp_path / "enc", "onnx", out, number_format=number_format, device="cpu").right
        found, wanted = (
            each.encode(real_texts[:20]) for each in (Encoder.from_pretrained(out, backend="onnx"), encoder)
        )
        if slack is not None:
            assert np.abs(found - wanted).max() <= slack
        assert (found * wanted).sum(axis=1).min() > 0.99
