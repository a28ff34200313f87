"""Contract: `docs/onnx.md` shows what is done: its commands and Python run, and the families are those tested."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from pages import as_it_runs, blocks
from test_onnx import FAMILIES, UNFOLLOWED

from bothways import Encoder
from bothways.cli import main
from bothways.corpus.layout import read_manifest
from bothways.export import onnx, openvino

PAGE = Path(__file__).resolve().parents[2] / "docs" / "onnx.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_the_page_runs(
    own_folder: Path,
    own: Encoder,
    onnx_folder: Path,
    tmp_path: Path,
    real_texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the file that other tests have exported: the exporter takes its time, and theirs is the business of that."""

    def copied(encoder: Encoder, file: Path) -> None:
        assert torch.equal(next(encoder.model.parameters()), next(own.model.parameters()))
        shutil.copy(onnx_folder / "model.onnx", file)

    monkeypatch.setattr(onnx, "write_file", copied)
    assert openvino.onnx is onnx
    shutil.copytree(own_folder, tmp_path / "my-encoder")
    pairs = [{"s1": real_texts[i][:80], "s2": real_texts[i + 1][:80], "score": i % 4} for i in range(7)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    (tmp_path / "docs.jsonl").write_text("\n".join(json.dumps({"text": text[:80]}) for text in real_texts[:7]))
    monkeypatch.chdir(tmp_path)
    lines = [line for block in blocks("console", TEXT) for line in block.splitlines()]
    assert len(lines) == 6
    for line in lines:
        program, *arguments = shlex.split(line.removeprefix("$ "))
        assert program == "bothways"
        with pytest.raises(SystemExit) as left:
            main([*arguments, "--device", "cpu"])
        assert left.value.code == 0, line
    assert read_manifest("vectors").rows == 7
    assert as_it_runs(PAGE) == TEXT


def test_the_families_are_those_that_are_tested() -> None:
    named = re.split(r"\n## ", TEXT)[-1].split(", sliding windows")[0].split(": ")[1]
    assert sorted(re.split(r",\s+", named)) == sorted(FAMILIES)
    refused = re.search(r"does not follow ([^:]*?), whose", TEXT)
    assert refused is not None
    assert sorted(re.split(r", | and ", refused[1])) == sorted(UNFOLLOWED)
