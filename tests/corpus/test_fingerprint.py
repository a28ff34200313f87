"""Contract: the number of an encoder changes with what its vectors depend on, and with nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bothways import convert
from bothways.corpus.fingerprint import encoder_fingerprint
from bothways.errors import DataError


@pytest.fixture(scope="module")
def saved(tiny_llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "enc"
    convert(tiny_llama_folder, device="cpu").save_pretrained(folder)
    return folder


def test_a_copy_has_the_same_and_the_record_does_not_count(saved: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(saved, copy)
    (copy / "README.md").write_text("other words")
    (copy / "adapter").mkdir()
    (copy / "adapter" / "adapter_model.safetensors").write_bytes(b"tensors")
    content = json.loads((copy / "bothways.json").read_text())
    content["notes"] = ["a note"]
    (copy / "bothways.json").write_text(json.dumps(content))
    assert encoder_fingerprint(copy) == encoder_fingerprint(str(saved))


@pytest.mark.parametrize("what", ["weights", "tokenizer", "setting", "config"])
def test_weights_tokenizer_settings_and_config_count(saved: Path, tmp_path: Path, what: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(saved, copy)
    if what == "setting":
        content = json.loads((copy / "bothways.json").read_text())
        content["settings"]["max_length"] -= 1
        (copy / "bothways.json").write_text(json.dumps(content))
    else:
        file = {"weights": "model.safetensors", "tokenizer": "tokenizer.json", "config": "config.json"}[what]
        content = bytearray((copy / file).read_bytes())
        content[-2] ^= 1
        (copy / file).write_bytes(bytes(content))
    assert encoder_fingerprint(copy) != encoder_fingerprint(saved)


def test_a_stock_folder_has_one_too(saved: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(saved, copy)
    (copy / "bothways.json").unlink()
    before = encoder_fingerprint(copy)
    pooling = copy / "1_Pooling" / "config.json"
    pooling.write_text(pooling.read_text().replace("true", "false", 1))
    assert before != encoder_fingerprint(copy)


def test_a_folder_that_is_none_is_said(tiny_llama_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither bothways\.json nor modules\.json is there, so this is no folder of"):
        encoder_fingerprint(tiny_llama_folder)
    with pytest.raises(DataError, match="is not a folder"):
        encoder_fingerprint(tmp_path / "nothing")
