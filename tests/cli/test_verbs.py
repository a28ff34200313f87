"""Contract: the verbs, folder -> folder; exit codes; data on stdout; nothing is overwritten."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from bothways.cli import VERBS, main
from bothways.encoder import Encoder

TINY = ("--steps", "2", "--batch-size", "3", "--precision", "fp32", "--held-out-items", "0")


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, real_texts: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("data")
    real_texts = [text for text in real_texts if len(text) < 200]
    for number in (0, 1):
        (folder / f"texts{number}.txt").write_text("\n".join(real_texts[number * 20 : number * 20 + 20]) + "\n")
    rows = [{"query": real_texts[i][:30], "positive": real_texts[i]} for i in range(11)]
    (folder / "examples.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    pairs = [{"s1": real_texts[i], "s2": real_texts[i + 1], "score": i} for i in range(7)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)) + "\n")
    return folder


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory, tiny_llama_folder: Path, data: Path) -> Path:
    """enc/0 to enc/3 as the README makes them."""
    out = tmp_path_factory.mktemp("enc")
    texts = data / "texts0.txt"
    assert call("convert", tiny_llama_folder, "--out", out / "0") == 0
    files = ("--data", texts, "--data", data / "texts1.txt")
    assert call("mntp", out / "0", *files, "--out", out / "1", *TINY, "--block-size", 32) == 0
    assert call("simcse", out / "1", "--data", texts, data / "texts1.txt", "--out", out / "2", *TINY) == 0
    assert call("supervised", out / "2", "--data", data / "examples.jsonl", "--out", out / "3", *TINY) == 0
    return out


def test_every_verb_leaves_a_complete_encoder_that_knows_its_past(encoders: Path) -> None:
    encoder = Encoder.from_pretrained(encoders / "3")
    assert [stage["stage"] for stage in encoder.record.stages] == ["convert", "mntp", "simcse", "supervised"]
    assert [stage.get("data", {}).get("items") for stage in encoder.record.stages] == [None, 40, 40, 11]
    assert not list(encoders.glob("*.checkpoints"))


def test_rates_and_words_of_mntp_are_flags(encoders: Path, data: Path, tmp_path: Path) -> None:
    flags = ("--held-out-rates", "0.15", "0.5", "--mask-schedule", "linear", "--mask-rate-end", "0.4", "--whole-words")
    files = ("--data", data / "texts0.txt", "--held-out", data / "texts1.txt", "--out", tmp_path / "1")
    more = ("--mask-token", "new", "--tune", "dora", "--merge-back", "0.25", "--block-size", 32)
    assert call("mntp", encoders / "0", *files, *TINY, *flags, *more) == 0
    stage = Encoder.from_pretrained(tmp_path / "1").record.stages[-1]
    assert stage["settings"]["held_out_rates"] == [0.15, 0.5]
    assert stage["settings"]["whole_words"] is True
    assert {"loss at 0.15", "accuracy at 0.5"} <= set(stage["held_out"]["2"]) & set(stage["held_out_merged"])
    assert stage["mask_token"]["new"] is True


def test_show_prints_stages_settings_and_certificate(encoders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("show", encoders / "3", "--certificate") == 0
    shown = capsys.readouterr().out
    assert "a bidirectional encoder made from" in shown
    for expected in ("3 supervised", "mask_rate", "Certificate", "layers.2.self_attn", "bidirectional (all back"):
        assert expected in shown
    assert call("show", encoders / "3", "--json") == 0
    assert json.loads(capsys.readouterr().out)["stages"][1]["settings"]["steps"] == 2


def test_encode_writes_what_encode_document_gives(encoders: Path, data: Path, tmp_path: Path) -> None:
    assert call("encode", encoders / "1", data / "texts0.txt", "--out", tmp_path / "vectors") == 0
    table = pq.read_table(tmp_path / "vectors" / "part-00000.parquet").to_pydict()
    expected = Encoder.from_pretrained(encoders / "1").encode_document(table["text"])
    np.testing.assert_allclose(np.array(table["vector"]), expected, atol=1e-5)
    assert len(table["id"]) == 20


def test_evaluate_compares_encoders_with_tf_idf(
    encoders: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = tmp_path / "scores.json"
    names = (str(encoders / "0"), str(encoders / "3"))
    assert call("evaluate", *names, "--tasks", data / "pairs.jsonl", "--json", scores) == 0
    assert "tf-idf" in capsys.readouterr().out
    assert [row["encoder"] for row in json.loads(scores.read_text())["rows"]] == ["tf-idf", *names]


@pytest.mark.parametrize("verb", ["convert", "mntp", "simcse", "supervised", "encode"])
def test_out_is_never_overwritten(
    verb: str, encoders: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.tex").write_text("years of work")
    file = data / ("examples.jsonl" if verb == "supervised" else "texts0.txt")
    given = {"convert": (encoders / "0",), "encode": (encoders / "0", file)}.get(verb, (encoders / "0", "--data", file))
    assert call(verb, *given, "--out", taken) == 1
    assert "nothing is overwritten" in capsys.readouterr().err
    assert [path.name for path in taken.iterdir()] == ["thesis.tex"]


def test_an_interrupted_stage_is_not_begun_anew_by_accident(
    encoders: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out.checkpoints").mkdir()
    arguments = ("mntp", encoders / "0", "--data", data / "texts0.txt", "--out", tmp_path / "out")
    assert call(*arguments) == 1
    assert "holds an interrupted run. Go on with --resume" in capsys.readouterr().err


def test_a_head_that_was_left_out_comes_back_from_the_base(
    tiny_untied_folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("convert", tiny_untied_folder, "--no-head", "--out", tmp_path / "0") == 0
    arguments = ("mntp", tmp_path / "0", "--data", data / "texts0.txt", *TINY, "--block-size", 32)
    assert call(*arguments, "--out", tmp_path / "1") == 1
    assert "--base" in capsys.readouterr().err
    assert call(*arguments, "--base", tiny_untied_folder, "--out", tmp_path / "1") == 0
    assert Encoder.from_pretrained(tmp_path / "1").head is not None


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "usage: bothways COMMAND"),
        (("mtnp",), 2, 'unknown command "mtnp". Did you mean "mntp"?'),
        (("mntp", "enc", "--out", "x"), 2, "--data is missing"),
        (("mntp", "enc", "--data", "a.txt"), 2, "--out"),
        (("mntp", "enc", "--data", "a.txt", "--out", "x", "--mask-rate", "3"), 2, "expected 0 < mask_rate < 1"),
        (("mntp", "enc", "--data", "a.txt", "--out", "x", "--mask-ratio", "0.3"), 2, "--mask-rate"),
        (("mntp", "enc", "--data", "no-such.txt", "--out", "no-such"), 1, "DataError: no-such.txt: no such file."),
        (("convert", "./no-such", "--out", "x"), 1, "./no-such is not a folder"),
        (("show", "no-such"), 1, "no-such is neither an encoder"),
        (("run", "no-such.yaml", "--out", "x"), 1, "ConfigError: no-such.yaml: cannot be read"),
        (("evaluate", "enc"), 2, "--tasks is missing"),
    ],
)
def test_what_is_wrong_decides_the_exit_code(
    arguments: tuple[str, ...],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(*arguments) == code
    out, err = capsys.readouterr()
    assert message in " ".join(err.split())
    assert "Traceback" not in err
    assert not out
    assert not list(tmp_path.iterdir())


def test_interruption_has_an_exit_code_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bothways.cli._run", interrupted)
    assert call("demo") == 130


def test_help_and_usage_errors_do_not_import_torch() -> None:
    code = (
        "import sys\nfrom bothways.cli import main\n"
        "for arguments in (['--help'], ['mntp', '--help'], ['simcse', 'enc', '--out', 'x']):\n"
        "    try: main(arguments)\n    except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(verb in done.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(verb, "--help") == 0
    assert f"usage: bothways {verb}" in capsys.readouterr().out
