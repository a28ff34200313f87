"""Property: what is exported is right or not there; what a file was made of is recorded beside it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bothways import Encoder, convert
from bothways.errors import ConfigError, DataError, VerificationError
from bothways.export import export, made_of, stock
from bothways.export.engines.stock import StockEngine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_llama_folder: Path) -> Path:
    out = tmp_path_factory.mktemp("enc") / "encoder"
    convert(tiny_llama_folder, dtype="float32", device="cpu").save_pretrained(out)
    return out


def test_what_turns_out_causal_is_not_left_there(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def causal(encoder: Encoder, folder: Path, out: Path, *, number_format: str | None = None) -> StockEngine:
        encoder.save_pretrained(out, head=False)
        config = json.loads((out / "config.json").read_text())
        (out / "config.json").write_text(json.dumps({**config, "is_causal": True}))
        return StockEngine(out, device="cpu")

    monkeypatch.setattr(stock, "write", causal)
    said = rf"on {tmp_path}/out matches the causal reference .*\. Nothing was written to {tmp_path}/out\."
    with pytest.raises(VerificationError, match=said):
        export(folder, "sentence-transformers", tmp_path / "out", device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_a_file_has_its_record_beside_it(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_file(encoder: Encoder, folder: Path, out: Path, *, number_format: str | None = None) -> StockEngine:
        out.write_text("weights")
        return StockEngine(folder, device="cpu")

    monkeypatch.setattr(stock, "write", one_file)
    out = tmp_path / "model.bin"
    assert export(folder, "sentence-transformers", out, device="cpu").right
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.bin", "model.bin.export.json"]
    record = json.loads((tmp_path / "model.bin.export.json").read_text())
    assert record["verdict"]["matches"] == "bidirectional"
    assert made_of(out) == folder
    assert made_of(folder) == folder
    assert made_of(tmp_path) is None
    (tmp_path / "model.bin.export.json").write_text(json.dumps({**record, "folder": "elsewhere"}))
    with pytest.raises(DataError, match=r"made of .*elsewhere, which is not there\. Pass --against FOLDER"):
        made_of(out)
    out.unlink()
    with pytest.raises(ConfigError, match=r"model\.bin\.export\.json exists"):
        export(folder, "sentence-transformers", out, device="cpu")


@pytest.mark.parametrize("to", ["sentence-transformers", "onnx", "gguf", "vllm"])
def test_what_stands_around_every_text_no_engine_knows(folder: Path, tmp_path: Path, to: str) -> None:
    encoder = Encoder.from_pretrained(folder, device="cpu")
    encoder.settings = replace(encoder.settings, text_template="[{text}]")
    encoder.save_pretrained(tmp_path / "framed")
    with pytest.raises(ConfigError, match=r"reads every text as '\[\{text\}\]', which no engine .* bothways serve\."):
        export(tmp_path / "framed", to, tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_an_unknown_target(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r'unknown target "sentence-transformer"\. Did you mean "sentence-transformers"'
    ):
        export(folder, "sentence-transformer", tmp_path / "out")
