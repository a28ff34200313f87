"""Contract: `bothways mine`, pairs in, triplets out, which `bothways supervised` trains on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bothways import Encoder, convert
from bothways.cli import main
from bothways.corpus import Mine, mine
from bothways.data import read_examples

pytest.importorskip("sentence_transformers")
pytest.importorskip("datasets")


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


@pytest.fixture
def desk(tmp_path: Path, tiny_llama_folder: Path, real_texts: list[str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """An encoder, pairs in two files (a query with two positives in the second), a corpus in two files."""
    monkeypatch.chdir(tmp_path)
    convert(tiny_llama_folder, dtype="float32", device="cpu").save_pretrained(tmp_path / "enc")
    texts = [text for text in real_texts if len(text) < 200]
    rows = [{"query": f"{i} {text[:30]}", "positive": text, "instruction": "find"} for i, text in enumerate(texts[:11])]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    row = {"anchor": "both of them", "pos": texts[11:13], "neg": ["none of them"]}
    (tmp_path / "b.jsonl").write_text(json.dumps(row))
    documents = [{"_id": f"d{i}", "title": f"title {i}", "text": text} for i, text in enumerate(texts[13:30])]
    (tmp_path / "docs.jsonl").write_text("\n".join(map(json.dumps, documents)))
    (tmp_path / "more.txt").write_text("\n".join(texts[:20]))
    return tmp_path


def test_pairs_become_triplets_that_are_trained_on(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ("--data", "a.jsonl", "--data", "b.jsonl", "--corpus", "docs.jsonl", "more.txt")
    flags = ("--num-negatives", 4, "--range-min", 1, "--relative-margin", 0.01, "--range-max", 37)
    assert call("mine", "enc", *files, *flags, "--out", "new/triplets.jsonl") == 0
    shown = capsys.readouterr()
    assert not shown.out
    found = list(read_examples("new/triplets.jsonl"))
    pairs = [*read_examples("a.jsonl"), *read_examples("b.jsonl")]
    documents = [json.loads(line) for line in Path("docs.jsonl").read_text().splitlines()]
    corpus = [f"{row['title']} {row['text']}" for row in documents] + Path("more.txt").read_text().splitlines()
    settings = Mine(num_negatives=4, range_min=1, relative_margin=0.01, range_max=37)
    mined = mine(Encoder.from_pretrained("enc", device="cpu"), pairs, corpus, settings)
    assert found == mined.examples
    assert found[0].query_instruction == "find"
    assert found[-1].negatives[0] == "none of them"
    assert not {found[-1].positive, found[-2].positive} & {*found[-1].negatives, *found[-2].negatives}
    assert f"mine: {mined.negatives:,} negatives of 12 queries, out of 37 documents" in shown.err
    assert "mean cosine to the queries: positives " in shown.err
    assert "mine: 13 examples written to new/triplets.jsonl" in shown.err
    tiny = ("--steps", 2, "--batch-size", 3, "--precision", "fp32", "--held-out-items", 0)
    assert call("supervised", "enc", "--data", "new/triplets.jsonl", *tiny, "--out", "trained") == 0


def test_what_was_not_found_is_counted(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        call("mine", "enc", "--data", "b.jsonl", "--corpus", "docs.jsonl", "--max-score", "-1", "--out", "x.jsonl") == 0
    )
    shown = capsys.readouterr().err
    assert "mine: 0 negatives of 1 queries, out of 19 documents" in shown
    assert "mine: 0 queries have fewer than 3, 1 have none: a larger corpus or range_max, or smaller margins," in shown
    assert list(read_examples("x.jsonl")) == list(read_examples("b.jsonl"))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--out", "x.jsonl"), 2, "bothways mine: --data is missing. Name one or more files of queries and positives."),
        (("--data", "a.jsonl", "--out", "x.csv"), 2, "--out x.csv: expected a name that ends in .jsonl."),
        (("--data", "a.jsonl", "--out", "b.jsonl"), 1, "b.jsonl exists. Name another file, or delete it: nothing is"),
        (("--data", "no.jsonl", "--out", "x.jsonl"), 1, "DataError: no.jsonl: no such file."),
        (("--data", "a.jsonl", "--out", "x.jsonl", "--num-negatives", "0"), 2, "Mine(num_negatives=0): expected 1 or"),
    ],
)
def test_what_is_wrong_is_said(
    arguments: tuple[str, ...], code: int, message: str, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(desk.iterdir())
    assert call("mine", "enc", *arguments) == code
    assert message in " ".join(capsys.readouterr().err.split())
    assert sorted(desk.iterdir()) == before
