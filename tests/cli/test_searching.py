"""Contract: `bothways index` and `bothways search`, through the encoder that made the vectors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import written

from bothways import Encoder, convert
from bothways.cli import main
from bothways.corpus.fingerprint import encoder_fingerprint
from bothways.corpus.index import Indexed

pytest.importorskip("lancedb")


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_llama_folder: Path, real_texts: list[str]) -> Path:
    """An encoder with a prompt for queries, and what it makes of some paragraphs, with a year and a language each."""
    folder = tmp_path_factory.mktemp("made")
    convert(tiny_llama_folder, dtype="float32", device="cpu", prompts={"query": "Q: "}).save_pretrained(folder / "enc")
    texts = [text for text in real_texts if len(text) < 200][:300]
    vectors = Encoder.from_pretrained(folder / "enc", device="cpu").encode_document(texts)
    columns = {"year": [1900 + row for row in range(len(texts))], "lang": ["en", "[b]"] * (len(texts) // 2)}
    written.corpus(
        folder / "corpus",
        vectors,
        texts=texts,
        columns=columns,
        encoder=str(folder / "enc"),
        fingerprint=encoder_fingerprint(folder / "enc"),
        rows_of_part=170,
    )
    return folder


@pytest.fixture
def desk(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made / "corpus", tmp_path / "corpus")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows_of(capsys: pytest.CaptureFixture[str]) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_documents_are_found_without_an_index_and_with_one(
    desk: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ("search", "corpus", "how are names bound", "a class", "-k", 3, "--device", "cpu", "--json")
    assert call(*ask, "--columns", "lang, year") == 0
    shown = capsys.readouterr()
    assert "search: 300 vectors, no index: all are compared" in shown.err
    rows = [json.loads(line) for line in shown.out.splitlines()]
    assert [(row["query"], row["rank"]) for row in rows] == [
        (query, rank) for query in ("how are names bound", "a class") for rank in (1, 2, 3)
    ]
    encoder = Encoder.from_pretrained(made / "enc", device="cpu")
    texts = [row["text"] for row in rows[:3]]
    scores = encoder.encode_document(texts) @ encoder.encode("Q: how are names bound")
    np.testing.assert_allclose([row["score"] for row in rows[:3]], scores, atol=1e-5)
    assert all(row["columns"]["year"] == 1900 + int(row["id"][1:]) for row in rows)
    assert set(rows[0]) == {"query", "rank", "id", "score", "text", "columns"}
    assert call("index", "corpus") == 0
    assert "index: 300 vectors, all of them are compared at a search" in capsys.readouterr().err
    assert call(*ask, "--columns", "lang, year") == 0
    assert rows_of(capsys) == rows
    assert call("index", "corpus", "--overwrite", "--kind", "ann", "--num-partitions", 3, "--filters", "year") == 0
    indexed = Indexed.read(desk / "corpus")
    said = " ".join(capsys.readouterr().err.split())
    assert "index: 300 vectors, IVF_SQ of 3 partitions, searched with nprobes=" in said
    assert f"index: recall@10 {indexed.recall:.3f} on 150 rows of the corpus" in said
    assert call(*ask, "--where", "year >= 1950 AND lang = 'en'", "--columns", "year", "lang") == 0
    rows = rows_of(capsys)
    assert len(rows) == 6
    assert all(row["columns"]["year"] >= 1950 and row["columns"]["lang"] == "en" for row in rows)


def test_questions_of_a_file_and_an_instruction(desk: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (desk / "more.jsonl").write_text('"a module"\n{"text": "a loop"}\n')
    ask = ("--queries", "more.jsonl", "--instruction", "Q:", "--k", 1, "--json", "--encoder", made / "enc")
    assert call("search", "corpus", "first", *ask) == 0
    rows = rows_of(capsys)
    assert [row["query"] for row in rows] == ["first", "a module", "a loop"]
    encoder = Encoder.from_pretrained(made / "enc", device="cpu")
    score = encoder.encode_document(rows[2]["text"]) @ encoder.encode("a loop", instruction="Q:")
    assert rows[2]["score"] == pytest.approx(score, abs=1e-5)
    assert rows[2]["columns"] == {}


def test_a_table_shows_a_line_for_each_document(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("search", "corpus", "what is [red]", "-k", 4, "--columns", "lang", "--where", "lang = '[b]'") == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].strip() == "what is [red]"
    assert [word for word in shown[2].split() if word.isalpha()] == ["score", "id", "lang", "text"]
    assert sum(" [b] " in line for line in shown) == 4
    assert max(map(len, shown)) <= 200
    assert call("search", "corpus", "what", "--where", "year = 3") == 0
    assert "nothing was found" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("search", "corpus"), 2, "bothways search: no question. Give one behind the folder, or --queries FILE."),
        (("search", "nowhere", "a"), 1, "DataError: nowhere: corpus.json is missing, so this is no folder of vectors."),
        (("search", "corpus", "a", "-k", "0"), 1, "ConfigError: search: k=0, expected 1 or more."),
        (("search", "corpus", "a", ""), 1, "DataError: search: queries[1] is empty. Ask something."),
        (("search", "corpus", "a", "--columns", "yaer"), 1, 'no column "yaer". Did you mean "year"?'),
        (("search", "corpus", "a", "--where", "lang = 'it's'"), 1, "Unterminated string literal"),
        (("search", "corpus", "a", "--queries", "no.txt"), 1, "DataError: no.txt: no such file."),
        (("search", "corpus", "a", "--encoder", "./gone"), 1, "DataError: ./gone is not a folder."),
        (("index", "nowhere"), 1, "DataError: nowhere: corpus.json is missing"),
        (("index", "corpus", "--recall", "2"), 2, "Index(recall=2): expected a share"),
        (("index", "corpus", "--filters", "yaer"), 1, 'index: filters: the corpus has no column "yaer". Did you mean'),
    ],
)
def test_what_is_wrong_is_said(
    arguments: tuple[str, ...], code: int, message: str, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*arguments) == code
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not (desk / "corpus" / "index").exists()


def test_an_encoder_that_moved_or_changed_is_said(desk: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((desk / "corpus" / "corpus.json").read_text())
    (desk / "corpus" / "corpus.json").write_text(json.dumps(manifest | {"encoder": "./gone"}))
    assert call("search", "corpus", "a") == 1
    said = capsys.readouterr().err
    assert "corpus: its encoder is no longer where it was. ./gone is not a folder." in said
    assert "Say where it is now with --encoder." in said
    shutil.copytree(made / "enc", desk / "moved")
    assert call("search", "corpus", "a", "--encoder", "moved") == 0
    settings = json.loads((desk / "moved" / "bothways.json").read_text())
    settings["settings"]["pooling"] = "last"
    (desk / "moved" / "bothways.json").write_text(json.dumps(settings))
    capsys.readouterr()
    assert call("search", "corpus", "a", "--encoder", "moved") == 1
    shown = capsys.readouterr()
    assert "corpus: its vectors are of another encoder (fingerprint " in shown.err
    assert "than moved (" in shown.err
    assert not shown.out
