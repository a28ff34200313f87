"""Contract: what a stage reads, and how it is told apart from other data; sources of three kinds through one verb."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bothways import MNTP, Encoder, SimCSE, Supervised, convert, data, mntp
from bothways.data import Rows, Source, Texts, read_examples
from bothways.errors import ConfigError, TrainingError
from bothways.recipe.reader import SETTINGS, Files, Reads, Step, reads
from bothways.recipe.stage import amount, fingerprint_of, read_files, train_into
from bothways.stages.mntp import _Task


@pytest.fixture
def folder(tmp_path: Path, real_texts: list[str]) -> Path:
    """Texts in three formats, 20 each, and 12 examples in a table."""
    texts = [text for text in real_texts if len(text) < 200]
    (tmp_path / "a.txt").write_text("\n".join(texts[:20]) + "\n")
    pq.write_table(pa.table({"body": texts[20:40]}), tmp_path / "b.parquet")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts[40:60]))
    pq.write_table(pa.table({"anchor": texts[:12], "positive": texts[20:32]}), tmp_path / "pairs.parquet")
    return tmp_path


def three(folder: Path, weight: float = 1.0) -> Files:
    return Files(
        data=(
            Source(path=str(folder / "a.txt")),
            Source(path=str(folder / "b.parquet"), column="body", weight=weight),
            Source(path=f"hub:{folder / 'set'}"),
        )
    )


def reads_of(stage: str) -> Reads:
    return reads(stage, SETTINGS[stage]())


SHARED = {"steps": 3, "batch_size": 4, "precision": "fp32", "held_out_items": 6}


@pytest.mark.parametrize("settings", [MNTP(block_size=None, **SHARED), SimCSE(**SHARED)])
def test_sources_are_trained_on_and_recorded_by_name(
    settings: MNTP | SimCSE, folder: Path, tiny_llama_folder: Path
) -> None:
    pytest.importorskip("datasets")
    stage = type(settings).__name__.lower()
    files = three(folder, weight=2.0)
    rows, held_out = read_files(reads(stage, settings), files)
    assert held_out is None
    encoder = convert(tiny_llama_folder, dtype="float32", device="cpu")
    train_into(encoder, Step(stage, settings, files), rows, None, folder / "out")
    data = Encoder.from_pretrained(folder / "out").record.stages[-1]["data"]
    assert [(source["name"].split("/")[-1], source["weight"]) for source in data["sources"]] == [
        ("a.txt", 1.0),
        ("b.parquet", 2.0),
        ("set", 1.0),
    ]
    assert sum(source["rows"] for source in data["sources"]) == data["items"] == 54


def test_a_weight_changes_which_items_are_shown(folder: Path, tiny_llama_folder: Path) -> None:
    encoder = convert(tiny_llama_folder, dtype="float32", device="cpu")
    task = _Task(encoder, read_files(reads_of("mntp"), three(folder, 3.0))[0], [], MNTP(block_size=None))
    assert [(share.count, share.weight) for share in task.order.shares] == [(20, 1.0), (20, 3.0), (20, 1.0)]


def test_a_resumed_run_over_weighted_sources_ends_as_an_uninterrupted_one(
    folder: Path, tiny_llama_folder: Path
) -> None:
    pytest.importorskip("datasets")
    settings = MNTP(**{**SHARED, "block_size": 32, "save_every": 2, "tune": "full"})
    ends = []
    for resume in (False, True):
        encoder = convert(tiny_llama_folder, dtype="float32", device="cpu")
        texts = read_files(reads_of("mntp"), three(folder, weight=0.5))[0]
        mntp(encoder, texts, settings, checkpoint_dir=folder / "checkpoints", resume=resume, show_progress=False)
        ends.append(encoder.model.state_dict())
        # From the one before the last, so that there is something left to do.
        kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
        assert kept == ["step-00000002.pt", "step-00000003.pt"]
        (folder / "checkpoints" / "step-00000003.pt").unlink()
    assert all(ends[1][name].equal(weight) for name, weight in ends[0].items())
    texts = read_files(reads_of("mntp"), three(folder, weight=0.25))[0]
    encoder = convert(tiny_llama_folder, dtype="float32", device="cpu")
    with pytest.raises(TrainingError, match="cannot be resumed: data sources was"):
        mntp(encoder, texts, settings, checkpoint_dir=folder / "checkpoints", resume=True, show_progress=False)


def test_examples_come_from_tables(folder: Path, tiny_llama_folder: Path) -> None:
    files = Files(data=(Source(path=str(folder / "pairs.parquet"), weight=0.5),))
    rows, _ = read_files(reads_of("supervised"), files)
    assert amount(rows) == "12 rows"
    encoder = convert(tiny_llama_folder, dtype="float32", device="cpu")
    step = Step("supervised", Supervised(**{**SHARED, "held_out_items": 0}), files)
    train_into(encoder, step, rows, None, folder / "out")
    (source,) = encoder.record.stages[-1]["data"]["sources"]
    assert source == {"name": "pairs.parquet", "weight": 0.5, "rows": 12, "skipped": 0}
    with pytest.raises(ConfigError, match=r'pairs\.parquet: "column" is for texts; examples have columns of their own'):
        read_files(reads_of("supervised"), Files(data=(Source(path=str(folder / "pairs.parquet"), column="body"),)))


@pytest.mark.parametrize("stage", ["mntp", "simcse"])
def test_data_are_told_apart_by_content_and_weight(stage: str, folder: Path) -> None:
    path = folder / "a.txt"

    def fingerprint(weight: float) -> str:
        return fingerprint_of(read_files(reads_of(stage), Files(data=(Source(path=str(path), weight=weight),)))[0])

    before = fingerprint(1.0)
    assert fingerprint(2.0) != before
    assert fingerprint(1.0) == before
    path.write_text("other texts\n")
    assert fingerprint(1.0) != before


def test_examples_are_told_apart_by_policy_too(folder: Path) -> None:
    def fingerprint(**keys: float | bool) -> str:
        source = Source(path=str(folder / "pairs.parquet"), **keys)
        return fingerprint_of(read_files(reads_of("supervised"), Files(data=(source,)))[0])

    kinds: list[dict[str, float | bool]] = [{}, {"weight": 2.0}, {"across": False}, {"temperature": 0.1}]
    found = [fingerprint(**keys) for keys in [*kinds, {"weight": 2.0, "across": False}]]
    assert len(set(found)) == 5
    # As it was before there were policies, so that what was begun then goes on.
    plain = read_examples(folder / "pairs.parquet")
    assert found[:2] == [data.fingerprint(plain), data.fingerprint([data.fingerprint(plain), "[(12, 2.0)]"])]


def test_mntp_streams_and_the_others_hold_rows(folder: Path) -> None:
    path = Source(path=str(folder / "a.txt"))
    rows, held_out = read_files(reads_of("mntp"), Files(data=(path,), held_out=(path,)))
    assert isinstance(rows, Texts)
    assert isinstance(held_out, Texts)
    assert amount(rows) == "a.txt"
    rows, held_out = read_files(reads_of("simcse"), Files(data=(path,)))
    assert isinstance(rows, Rows)
    assert held_out is None


def test_a_disk_that_is_full_at_the_end_loses_nothing(folder: Path, tiny_llama_folder: Path) -> None:
    """The checkpoint after the last step fits, the encoder's folder does not: what was trained is written later."""
    files = Files(data=(Source(path=str(folder / "a.txt")),))
    settings = MNTP(block_size=None, **SHARED, tune="lora", lora_r=1)
    rows, _ = read_files(reads_of("mntp"), files)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    encoder = convert(tiny_llama_folder, dtype="float32", device="cpu")
    weights = sum(weight.numel() * 4 for weight in encoder.model.parameters())
    resource.setrlimit(resource.RLIMIT_FSIZE, (weights // 2, before[1]))
    try:
        with pytest.raises(TrainingError, match=r"no space left to write the trained encoder.*go on with --resume"):
            train_into(encoder, Step("mntp", settings, files), rows, None, folder / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith("out")) == ["out.checkpoints"]
    again = convert(tiny_llama_folder, dtype="float32", device="cpu")
    train_into(again, Step("mntp", settings, files), rows, None, folder / "out")
    assert Encoder.from_pretrained(folder / "out").record.stages[-1]["stage"] == "mntp"
