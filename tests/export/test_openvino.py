"""Parity and contract: OpenVINO computes the same file; pooled over the text's own tokens, with weights by position."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_onnx import SHAPES, TEXTS, batch

from bothways import Encoder, convert
from bothways.errors import ConfigError, DataError
from bothways.export import export
from bothways.runners import ExportedEncoder
from bothways.runners.runner import computed


@pytest.fixture(scope="module")
def torchs(tmp_path_factory: pytest.TempPathFactory, tiny_untied_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("own") / "enc"
    given = {"pool_over": "text", "pooling": "weighted_mean", "prompts": {"query": "find: "}, "max_length": 64}
    convert(tiny_untied_folder, dtype="float32", device="cpu", **given).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def openvino_folder(torchs: Path) -> Path:
    assert export(torchs, "openvino", torchs.parent / "enc-openvino", device="cpu").matches == "bidirectional"
    return torchs.parent / "enc-openvino"


@pytest.fixture(scope="module")
def own(torchs: Path) -> Encoder:
    return Encoder.from_pretrained(torchs, device="cpu")


@pytest.fixture(scope="module")
def opened(openvino_folder: Path) -> ExportedEncoder:
    return Encoder.from_pretrained(openvino_folder, backend="openvino")


def bfloat16() -> bool:
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def test_the_folder_is_complete(openvino_folder: Path) -> None:
    files = {"openvino_model.xml", "openvino_model.bin", "config.json", "tokenizer.json", "tokenizer_config.json"}
    records = {"bothways.json", "fingerprint.json", "export.json"}
    assert {path.name for path in openvino_folder.iterdir()} == files | records


@pytest.mark.parametrize(("rows", "tokens", "step"), SHAPES)
def test_vectors_are_torchs(rows: int, tokens: int, step: int, own: Encoder, opened: ExportedEncoder) -> None:
    features = batch(own, rows, tokens, step)
    assert bool((features.pool_mask != features.attention_mask).any()) == (tokens > 1)
    with torch.no_grad():
        wanted = own.pooled(own.hidden_states(features), features.pool_mask)
    assert np.abs(computed(opened.runner, features).vectors - wanted.numpy()).max() <= 1e-4


@pytest.mark.filterwarnings("ignore:1 of 6 texts have more than max_length=64")
def test_encode_is_that_of_torch(own: Encoder, opened: ExportedEncoder) -> None:
    assert np.abs(opened.encode(TEXTS) - own.encode(TEXTS)).max() <= 1e-4
    found, wanted = (encoder.encode(TEXTS, instruction="Find", overflow="chunk") for encoder in (opened, own))
    assert np.abs(found - wanted).max() <= 1e-4
    assert np.abs(opened.encode_query(TEXTS[:2]) - own.encode_query(TEXTS[:2])).max() <= 1e-4
    assert opened.dtype == torch.float32


def test_bfloat16_is_computed_or_said_not_to_be(openvino_folder: Path, own: Encoder, tmp_path: Path) -> None:
    """A folder that was exported for bfloat16 is opened wherever it is; asking for what is not there is refused."""
    folder = Path(shutil.copytree(openvino_folder, tmp_path / "bfloat16"))
    kept = json.loads((folder / "fingerprint.json").read_text())
    (folder / "fingerprint.json").write_text(json.dumps({**kept, "number_format": "bfloat16"}))
    encoder = Encoder.from_pretrained(folder, backend="openvino")
    assert (encoder.encode(TEXTS[:3]) * own.encode(TEXTS[:3])).sum(axis=1).min() > 0.99
    if bfloat16():
        assert encoder.dtype == torch.bfloat16
        asked = Encoder.from_pretrained(openvino_folder, backend="openvino", dtype="bfloat16")
        assert asked.dtype == torch.bfloat16
    else:
        assert encoder.dtype == torch.float32
        assert encoder.dtype_choice is not None
        assert "this CPU has no bfloat16 that OpenVINO uses (it offers FP32" in encoder.dtype_choice.why
        with pytest.raises(ConfigError, match=r"it would compute in float32 without a word.* Use dtype=\"auto\""):
            Encoder.from_pretrained(openvino_folder, backend="openvino", dtype="bf16")
    assert Encoder.from_pretrained(openvino_folder, backend="openvino", dtype="auto").dtype_choice is not None
    with pytest.raises(
        ConfigError, match=r'dtype="float16" with backend="openvino": expected one of float32, bfloat16'
    ):
        Encoder.from_pretrained(openvino_folder, backend="openvino", dtype="float16")


def test_other_weights_in_their_place_are_caught(openvino_folder: Path, own: Encoder, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(openvino_folder, tmp_path / "other"))
    weights = (folder / "openvino_model.bin").read_bytes()
    embedding = own.model.get_input_embeddings().weight.detach().numpy()
    assert embedding.tobytes() in weights
    other = np.roll(embedding, 1, axis=0)
    (folder / "openvino_model.bin").write_bytes(weights.replace(embedding.tobytes(), other.tobytes()))
    with pytest.raises(DataError, match="is not what was exported"):
        Encoder.from_pretrained(folder, backend="openvino")
    (folder / "openvino_model.xml").write_text("no model")
    with pytest.raises(DataError, match=r"openvino_model\.xml: .* Export again"):
        Encoder.from_pretrained(folder, backend="openvino")


def test_without_the_package_the_extra_is_named(
    openvino_folder: Path, torchs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ConfigError, match=r"needs OpenVINO: pip install bothways\[openvino\]"):
        Encoder.from_pretrained(openvino_folder, backend="openvino")
    with pytest.raises(ConfigError, match=r"--to openvino needs OpenVINO: pip install bothways\[onnx,openvino\]"):
        export(torchs, "openvino", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
