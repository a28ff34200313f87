"""Contract: `bothways export` and `bothways verify`: what is written is right or not there, what is causal is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from endpoints import endpoints

from bothways import Encoder, convert
from bothways.cli import main
from bothways.export.references import other_direction

PROMPT = "Find what answers this: "


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, tiny_llama_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("enc") / "encoder"
    prompts = {"query": PROMPT}
    convert(tiny_llama_folder, dtype="float32", device="cpu", prompts=prompts).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def planted(encoder: Path) -> Path:
    """What a loader makes of the folder that knows nothing of its keys: the same weights, opened causal."""
    folder = encoder.with_name("planted")
    shutil.copytree(encoder, folder)
    (folder / "bothways.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "is_causal": True}))
    return folder


def test_a_folder_is_its_own_reference(encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("verify", encoder, "--device", "cpu") == 0
    printed = capsys.readouterr().out
    assert f"sentence-transformers on {encoder} matches the bidirectional reference of {encoder}" in printed
    assert 'the stored prompt "query"' in printed


def test_a_planted_causal_folder_is_caught(planted: Path, encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("verify", planted, "--against", encoder, "--device", "cpu", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["matches"], found["expected"], found["right"]) == ("causal", "bidirectional", False)
    assert {case["matches"] for case in found["cases"]} == {"causal"}
    assert all(
        case["causal"]["difference"] < 1e-5 < 1e-2 < case["bidirectional"]["difference"] for case in found["cases"]
    )


def test_an_export_is_verified(encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert call("export", encoder, "--to", "sentence-transformers", "--out", out, "--device", "cpu") == 0
    assert f"sentence-transformers on {out} matches the bidirectional reference" in capsys.readouterr().err
    assert call("verify", out, "--against", encoder, "--device", "cpu") == 0
    assert call("export", encoder, "--to", "sentence-transformers", "--out", out) == 1
    assert "exists. Name another" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.fixture(scope="module")
def address(encoder: Path) -> Iterator[str]:
    """A server with the encoder behind it, right and wrong."""
    own = Encoder.from_pretrained(encoder, device="cpu")

    def served(**settings: object) -> Encoder:
        return Encoder(own.model, own.tokenizer, replace(own.settings, **settings), own.record)

    answers = {
        "right": own.encode,
        "causal": other_direction(own, encoder).encode,
        "last": served(pooling="last").encode,
        "stripped": lambda texts: own.encode([text.removeprefix(PROMPT) for text in texts]),
        "query": own.encode_query,
        "raw": served(normalize=False).encode,
        "nan": lambda texts: np.full((len(texts), own.dim), np.nan),
        "cut": lambda texts: own.encode(texts, truncate_dim=9),
        "broken": lambda texts: 500,
    }
    with endpoints(answers) as url:
        yield url


@pytest.mark.parametrize(
    ("path", "flags", "code", "said"),
    [
        ("right/v1/embeddings", ["--encoding-format", "base64"], 0, "matches the bidirectional reference"),
        ("right/embed", [], 0, "matches the bidirectional reference"),
        ("causal/embed", [], 1, "matches the causal reference"),
        ("last/v1/embeddings", [], 1, "Its vectors are the bidirectional ones of last-token pooling"),
        ("stripped/embed", [], 1, 'The prompt "query" is dropped'),
        ("query/embed", ["--prompt-name", "query"], 0, "matches the bidirectional reference"),
        ("right/embed", ["--prompt-name", "query"], 1, 'The prompt "query" is dropped'),
        ("raw/embed", [], 1, "Its vectors are not of unit length"),
        ("nan/embed", [], 1, "returned NaN or infinity for text 1 of 1"),
        ("cut/v1/embeddings", [], 1, "returned vectors of 9 numbers, the folder's have 56"),
        ("broken/v1/embeddings", [], 1, 'HTTP 500: {"error": "out of memory"}'),
    ],
)
def test_a_server(
    address: str, encoder: Path, capsys: pytest.CaptureFixture[str], path: str, flags: list[str], code: int, said: str
) -> None:
    assert call("verify", f"{address}/{path}", "--against", encoder, "--device", "cpu", *flags) == code
    printed = capsys.readouterr()
    assert said in printed.out + printed.err


def test_a_server_that_is_not_there(encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("verify", "http://127.0.0.1:1/embed", "--against", encoder) == 1
    assert "cannot be reached" in capsys.readouterr().err


def test_texts_from_a_file(encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "texts.txt").write_text("One text of mine\n\nand another, a longer one, which is of mine too\n")
    assert call("verify", encoder, "--texts", tmp_path / "texts.txt", "--device", "cpu", "--json") == 0
    assert json.loads(capsys.readouterr().out)["cases"][0]["texts"] == 2
    assert call("verify", encoder, "--texts", tmp_path / "none.txt") == 1
    assert "Pass a UTF-8 file with one text a line" in capsys.readouterr().err


def test_wrong_usage(encoder: Path, planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.gguf").touch()
    for arguments, code, said in (
        (["verify", planted], 2, "Pass --against FOLDER"),
        (["verify", "http://127.0.0.1:1/embed"], 2, "Pass --against FOLDER"),
        (["verify", tmp_path / "model.gguf"], 2, "Pass --against FOLDER"),
        (["verify", encoder, "--timeout", "3"], 2, "is no server. Leave out --model"),
        (["verify", tmp_path / "none"], 1, "expected a sentence-transformers folder, a file that ends with .onnx"),
        (["verify", encoder.parent], 1, "it holds none of them. Name the file"),
        (["export", encoder, "--to", "onyx", "--out", tmp_path / "out"], 2, "--to onyx is not known."),
        (
            ["export", encoder, "--to", "sentence-transformers", "--out", tmp_path / "out", "--number-format", "int8"],
            1,
            "keeps the number format",
        ),
    ):
        assert call(*arguments) == code, arguments
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
