"""Contract: tokens of files are made once, found again while nothing changed, and whole or not there."""

from __future__ import annotations

import logging
import multiprocessing
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from bothways import MNTP, Encoder, convert, mntp
from bothways.data import Texts, read_texts
from bothways.errors import DataError, TrainingError
from bothways.training import token_cache
from bothways.training.rows import read_tokens
from bothways.training.token_cache import identity, stored
from bothways.training.tokens import Tokens


class Counted:
    """An `Encode` that knows how many texts it was given."""

    def __init__(self) -> None:
        self.texts = 0

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        self.texts += len(texts)
        return [[ord(letter) for letter in text] for text in texts]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BOTHWAYS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.jsonl"
    path.write_text('"one"\n""\n"three"\n')
    return path


def test_what_was_tokenised_is_found_again(cache: Path, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    encode = Counted()
    made, found = (Tokens(stored(Texts([path], "skip"), encode, "how")) for _ in range(2))
    assert encode.texts == 2
    assert list(made) == list(found) == [[111, 110, 101], [116, 104, 114, 101, 101]]
    assert made.fingerprint() == found.fingerprint()
    assert [(origin.name, origin.rows, origin.skipped) for origin in found.origins] == [("a.jsonl", 2, 1)]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert all('a.jsonl: skipped 1 bad rows, kept 2.\n  line 2: "text" is empty.' in line for line in warnings)
    assert [item.name for item in cache.iterdir() if item.is_dir()] == [item.name for item in cache.glob("?" * 32)]


def test_whatever_decides_about_the_ids_decides_about_the_name(cache: Path, path: Path, tmp_path: Path) -> None:
    encode = Counted()
    stored(Texts([path], "skip"), encode, "how")
    stored(Texts([path], "skip"), encode, "otherwise")
    assert encode.texts == 4
    path.write_text('"one"\n"two"\n"three"\n')
    stored(Texts([path], "skip"), encode, "how")
    assert encode.texts == 7
    path.rename(tmp_path / "b.jsonl")
    stored(Texts([f"{tmp_path / 'b.jsonl'}?weight=3"], "skip"), encode, "how")
    assert encode.texts == 7


def test_what_is_not_whole_is_made_anew(cache: Path, path: Path) -> None:
    encode = Counted()
    stored(Texts([path], "skip"), encode, "how")
    (kept,) = [item for item in cache.iterdir() if item.is_dir()]
    (kept / "ids.i32").write_bytes(b"1234")
    rest = cache / f".{kept.name}.77.partial"
    rest.mkdir()
    assert Tokens(stored(Texts([path], "skip"), encode, "how"))[0] == [111, 110, 101]
    assert encode.texts == 4
    assert not rest.exists()


def test_a_bad_row_leaves_nothing(cache: Path, path: Path) -> None:
    with pytest.raises(DataError, match=r'a\.jsonl line 2: "text" is empty'):
        stored(Texts([path]), Counted(), "how")
    assert not [item for item in cache.iterdir() if item.is_dir()]


def test_no_room_is_said_with_the_way_out(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("many words\n" * 5000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(TrainingError, match=r"no room for the tokens of a\.txt \(File too large\).*BOTHWAYS_CACHE"):
            stored(Texts([path]), Counted(), "how")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [item for item in cache.iterdir() if item.is_dir()]


def _slowly(path: Path, log: Path) -> None:
    def encode(texts: Sequence[str]) -> list[list[int]]:
        with log.open("a") as stream:
            stream.write("tokenised\n")
        # Longer than the others need to arrive.
        multiprocessing.Event().wait(0.5)
        return [[1] for _ in texts]

    stored(Texts([path]), encode, "how")


def test_of_several_processes_one_works(cache: Path, tmp_path: Path) -> None:
    path, log = tmp_path / "a.txt", tmp_path / "log"
    path.write_text("one\ntwo\n")
    context: Any = multiprocessing.get_context("fork")
    others = [context.Process(target=_slowly, args=(path, log)) for _ in range(3)]
    for other in others:
        other.start()
    for other in others:
        other.join(30)
    assert [other.exitcode for other in others] == [0, 0, 0]
    assert log.read_text() == "tokenised\n"


def test_the_name_knows_the_tokenizer_and_not_its_moods(tiny_llama_folder: Path, tiny_untied_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_folder)
    before = identity(tokenizer, 9)
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding()
    assert identity(tokenizer, 9) == before
    assert identity(tokenizer, 10) != before
    assert identity(AutoTokenizer.from_pretrained(tiny_untied_folder), 9) != before
    tokenizer.backend_tokenizer.add_tokens(["<new>"])
    assert identity(tokenizer, 9) != before


@pytest.fixture
def encoder(tiny_llama_folder: Path) -> Encoder:
    return convert(tiny_llama_folder, dtype="float32", device="cpu")


def test_ids_are_those_of_the_encoder(cache: Path, tmp_path: Path, encoder: Encoder, real_texts: list[str]) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(real_texts[:77]) + "\n")
    expected = [row.ids for row in encoder.tokenise(real_texts[:77])]
    for texts in (Texts([path]), real_texts[:77], read_texts(path)):
        assert list(read_tokens("mntp", encoder, texts, max_length=None)) == expected
        assert list(read_tokens("mntp", encoder, texts, max_length=6)) == [ids[:6] for ids in expected]


def test_files_train_as_lists_do(cache: Path, tmp_path: Path, encoder: Encoder, real_texts: list[str]) -> None:
    """Same weights to the last bit; the record names the sources."""
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(real_texts[:60]) + "\n")
    settings = MNTP(steps=3, batch_size=4, block_size=32, precision="fp32", held_out_items=5, tune="full")
    start = {name: weight.clone() for name, weight in encoder.model.state_dict().items()}
    found = []
    for texts in (real_texts[:60], Texts([path])):
        encoder.model.load_state_dict(start)
        mntp(encoder, texts, settings, show_progress=False)
        found.append({name: weight.clone() for name, weight in encoder.model.state_dict().items()})
    assert all(found[0][name].equal(found[1][name]) for name in start)
    of_list, of_file = (dict(stage["data"]) for stage in encoder.record.stages[-2:])
    assert of_file.pop("sources") == [{"name": "texts.txt", "weight": 1.0, "rows": 55, "skipped": 0}]
    assert of_file == of_list


def test_the_cache_is_where_one_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BOTHWAYS_CACHE", str(tmp_path / "own"))
    assert token_cache.folder() == tmp_path / "own" / "tokens"
    monkeypatch.delenv("BOTHWAYS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert token_cache.folder() == tmp_path / "xdg" / "bothways" / "tokens"
    monkeypatch.setenv("BOTHWAYS_CACHE", str(tmp_path / "file" / "x"))
    (tmp_path / "file").write_text("")
    (tmp_path / "a.txt").write_text("a\n")
    with pytest.raises(TrainingError, match=r"tokens: Not a directory\. Name another folder in \$BOTHWAYS_CACHE"):
        stored(Texts([tmp_path / "a.txt"]), Counted(), "how")
