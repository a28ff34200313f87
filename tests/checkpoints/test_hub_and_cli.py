"""Contract: hub ids are found in the hub's cache, and the command line makes a folder of a stack."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lora_folders import amend
from safetensors.torch import load_file

from bothways import Encoder
from bothways.cli import main
from bothways.errors import DataError

TEXTS = ["How do I open a compressed file?", "short", " spaces around \n"]
BASE, NAME = "meta-llama/Meta-Llama-3-8B-Instruct", "McGill-NLP/LLM2Vec-Meta-Llama-3-8B-Instruct-mntp"


def publish(folder: Path, name: str, hub: Path) -> Path:
    """As the hub's client keeps what it has fetched."""
    repository = hub / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / "0a1b")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0a1b")
    return repository / "snapshots" / "0a1b"


@pytest.fixture
def hub(tiny_llama_folder: Path, mntp: Path, supervised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    publish(tiny_llama_folder, BASE, folder)
    for adapter, name in ((mntp, NAME), (supervised, f"{NAME}-supervised")):
        amend(publish(adapter, name, folder) / "adapter_config.json", base_model_name_or_path=BASE)
    return folder


def test_names_of_the_hub_and_the_template_that_goes_with_the_base(
    hub: Path, mntp: Path, supervised: Path, tiny_llama_folder: Path, tmp_path: Path
) -> None:
    encoder = Encoder.from_pretrained(NAME, adapter=f"{NAME}-supervised")
    plain = Encoder.from_pretrained(mntp, adapter=supervised)
    # The tokenizer of these tests has no token for the marks: they are text like any other, and so is pooled what
    # stands behind the text alone.
    framed = [f"<|start_header_id|>user<|end_header_id|>\n\n{text.rstrip()}<|eot_id|>" for text in TEXTS]
    row = encoder.tokenise([TEXTS[0]])[0]
    assert row.ids == plain.tokenise([framed[0]])[0].ids
    before = len(plain.tokenise([framed[0].split(TEXTS[0])[0]])[0])
    assert row.pooled == [False] * before + [True] * (len(row) - before)
    assert [r.ids for r in encoder.tokenise(TEXTS)] == [r.ids for r in plain.tokenise(framed)]
    assert [r.ids for r in encoder.tokenise(TEXTS, " Find it: ")] == [
        r.ids for r in plain.tokenise([f.replace("\n\n", "\n\nFind it: ", 1) for f in framed])
    ]
    assert encoder.record.base == BASE
    moved = Encoder.from_pretrained(
        hub / f"models--{NAME.replace('/', '--')}" / "snapshots" / "0a1b", base=tiny_llama_folder
    )
    assert moved.settings.text_template == encoder.settings.text_template
    encoder.save_pretrained(tmp_path / "mine")
    again = Encoder.from_pretrained(tmp_path / "mine")
    np.testing.assert_allclose(again.encode(TEXTS), encoder.encode(TEXTS), rtol=0, atol=1e-6)
    assert "Every text is read as '<|start_header_id|>user" in again.record.notes[0]
    with pytest.warns(UserWarning, match=r"were computed in pieces"):
        assert again.encode("x " * 300, overflow="chunk").shape == (56,)


def test_a_second_adapter_alone_is_known_by_its_name_on_the_hub(hub: Path) -> None:
    with pytest.raises(ValueError, match=r'it is called "LLM2Vec-Meta-Llama-3-8B-Instruct-mntp-supervised"'):
        Encoder.from_pretrained(f"{NAME}-supervised")


def test_a_pickled_adapter_of_the_hub(hub: Path, mntp: Path) -> None:
    folder = hub / f"models--{NAME.replace('/', '--')}" / "snapshots" / "0a1b"
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    expected = Encoder.from_pretrained(NAME).encode(TEXTS)
    (folder / "adapter_model.safetensors").unlink()
    np.testing.assert_array_equal(Encoder.from_pretrained(NAME).encode(TEXTS), expected)


def test_what_the_cache_does_not_have(hub: Path) -> None:
    shutil.rmtree(hub / f"models--{BASE.replace('/', '--')}")
    with pytest.raises(DataError, match=rf"{NAME} was trained on {BASE}, which is not here: [\s\S]*as base="):
        Encoder.from_pretrained(NAME)


def test_adopt_makes_a_folder_of_a_stack(
    hub: Path, mntp: Path, supervised: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*arguments: object) -> int:
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        return int(left.value.code or 0)

    out = tmp_path / "mine"
    assert call("adopt", mntp, "--adapter", supervised, "--out", out, "--dtype", "float32") == 0
    assert "convert + adapter + adapter, written to" in capsys.readouterr().err
    expected = Encoder.from_pretrained(mntp, adapter=supervised).encode(TEXTS)
    np.testing.assert_allclose(Encoder.from_pretrained(out).encode(TEXTS), expected, rtol=0, atol=1e-6)
    assert call("show", out) == 0
    assert "2 adapter" in capsys.readouterr().out
    assert call("adopt", mntp, "--adapter", supervised, "--out", out) == 1
    assert call("adopt", supervised, "--out", tmp_path / "other") == 1
    assert "was trained on top of an MNTP stage" in capsys.readouterr().err
    assert call("adopt", supervised, "--without-mntp", "--out", tmp_path / "other") == 0
    assert call("adopt", mntp, "--base", BASE, "--out", tmp_path / "third") == 0
