"""What the tests of ONNX and OpenVINO share: an encoder, and its folder exported once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from bothways import Encoder, convert
from bothways.export import export

# For `from test_onnx import ...`, and the tiny decoders of many families.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "bidirectional")]


@pytest.fixture
def tiny() -> Callable[..., PreTrainedModel]:
    from tiny import tiny as made

    return made


@pytest.fixture(scope="session")
def own_folder(tmp_path_factory: pytest.TempPathFactory, tiny_llama_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("own") / "enc"
    prompts = {"query": "find: ", "document": "read: "}
    convert(tiny_llama_folder, dtype="float32", device="cpu", max_length=64, prompts=prompts).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def own(own_folder: Path) -> Encoder:
    return Encoder.from_pretrained(own_folder, device="cpu")


@pytest.fixture(scope="session")
def onnx_folder(own_folder: Path) -> Path:
    verdict = export(own_folder, "onnx", own_folder.parent / "enc-onnx", device="cpu")
    assert verdict.right
    assert verdict.matches == "bidirectional"
    return own_folder.parent / "enc-onnx"
