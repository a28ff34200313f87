"""Contract: nothing judged by is learnt from, no cell is computed twice, and the summary adds up."""

from __future__ import annotations

import argparse
import gzip
import json
import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[1]
PLANTED = "a man with a red hat is slowly riding a very old horse along the sea"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def sentences(seed: int, count: int) -> list[str]:
    """Different for every seed, of words that all share."""
    rng = random.Random(seed)
    names = ("horse", "train", "river", "letter", "engine", "garden", "captain", "winter", "music", "bridge", "window")
    verbs = ("crosses", "finds", "carries", "forgets", "paints", "follows", "builds", "hears")
    return [
        f"The {rng.choice(names)} number {seed}{place} {rng.choice(verbs)} the {rng.choice(names)} near the "
        f"{rng.choice(names)} and {rng.choice(verbs)} a {rng.choice(names)}."
        for place in range(count)
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of everything that the benchmark reads, small."""
    folder = tmp_path_factory.mktemp("data")

    def write(name: str, rows: Sequence[Any]) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n"
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())

    def labelled(seed: int, count: int, kinds: int) -> list[dict[str, Any]]:
        return [{"text": text, "label": place % kinds} for place, text in enumerate(sentences(seed, count))]

    write("text-peps/paragraphs.txt.gz", [f"They say that {PLANTED}, and so on.", *sentences(1, 400)])
    for seed, part in ((2, "test"), (3, "dev")):
        pairs = zip(sentences(seed, 23), sentences(seed + 50, 23), strict=True)
        rows = [{"s1": first, "s2": second, "score": place % 6} for place, (first, second) in enumerate(pairs)]
        write(f"sts-b/{part}.jsonl.gz", [*rows, {"s1": PLANTED, "s2": "nobody rides", "score": 0}])
    for seed, name in ((4, "cranfield"), (5, "xquad-en")):
        write(f"{name}/corpus.jsonl", [{"_id": str(i), "text": text} for i, text in enumerate(sentences(seed, 13))])
        queries = [{"_id": str(i), "text": text} for i, text in enumerate(sentences(seed + 50, 7))]
        write(f"{name}/queries.jsonl", queries)
        write(f"{name}/qrels.tsv", [f"{i}\t{i}\t1" for i in range(7)])
    for seed, name in ((6, "banking77/"), (7, "sentence-classification/trec-qc.")):
        write(f"{name}train.jsonl.gz", labelled(seed, 60, 3))
        write(f"{name}test.jsonl.gz", labelled(seed + 50, 17, 3))
    write("short-text-clusters/stackoverflow.jsonl.gz", labelled(8, 300, 4))
    triplets = zip(sentences(9, 300), sentences(10, 300), sentences(11, 300), strict=True)
    rows = [{"anchor": a, "positive": p, "negative": n} for a, p, n in triplets]
    write("nli/triplets.jsonl.gz", [*rows, {"anchor": PLANTED, "positive": "x", "negative": "y"}])
    pairs = list(zip(sentences(12, 90), sentences(13, 90), strict=True))
    questions = [{"question": q, "answer": a, "focus": str(i % 30), "source": "s"} for i, (q, a) in enumerate(pairs)]
    write("medquad/pairs.jsonl.gz", questions)
    write("tldr-commands/pairs.jsonl.gz", [{"query": q, "command": a, "page": "p"} for q, a in pairs])
    write("bible-pairs/pairs.jsonl.gz", [{"s1": q, "s2": a} for q, a in pairs])
    return folder


def options(data: Path, cache: Path, given: str = "") -> argparse.Namespace:
    from benchmarks import quality

    parser = argparse.ArgumentParser()
    quality.arguments(parser)
    return parser.parse_args(["--data", str(data), "--cache", str(cache), "--tiny", *given.split()])


def a_bench(data: Path, cache: Path) -> Any:
    from benchmarks import quality

    return next(quality._benches(options(data, cache, "--decoders embedded")))


def test_a_run_goes_on_where_it_stopped_and_its_tables_are_made(
    data: Path, tmp_path: Path, tiny_llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import quality
    from benchmarks.quality import bench, page, settings

    monkeypatch.setitem(settings.DECODERS, "embedded", settings.Decoder("random", str(tiny_llama_folder)))
    monkeypatch.setattr("benchmarks.quality.data.CLUSTERED", 40)
    monkeypatch.setattr("benchmarks.quality.data.CLUSTERED_DEV", 20)
    given = options(data, tmp_path, "--decoders embedded --only bothways --seeds 1")
    findings = quality.measure(given)
    lines = [("tf-idf", None), ("random weights", None), ("bothways", "causal"), ("bothways", "bidirectional")]
    lines += [("bothways", stage) for stage in ("+ MNTP", "+ SimCSE", "+ supervised")]
    assert list(dict.fromkeys((row["side"], row["stage"]) for row in findings.rows)) == lines
    assert len(findings.rows) == 5 * len(lines)
    assert all(np.isfinite(row["score"]) for row in findings.rows)
    assert [training["steps"] > 0 for training in findings.observed["trainings"]] == [True] * 3
    after = {
        row["stage"]: row["score"] for row in findings.rows if row["task"] == "sts-b" and row["side"] == "bothways"
    }
    assert len(set(after.values())) > 2

    monkeypatch.setattr(bench, "perform", lambda *_: pytest.fail("it is computed already"))
    again = quality.measure(given)
    assert again.rows == findings.rows
    found = {"observed": again.observed}
    assert "| bothways, + supervised |" in page.scores(found)
    assert "| causal -> + MNTP |" in page.order(found)
    assert page.settings(found) == "Nothing was chosen: defaults.\n"


def test_nothing_is_learnt_from_that_is_judged_by(data: Path, tmp_path: Path) -> None:
    bench = a_bench(data, tmp_path)
    assert any(PLANTED in text for text in bench.corpus.texts)
    assert any(PLANTED in row for row in bench.corpus.triplets["nli"])
    first, second = bench.drawn(0), bench.drawn(1)
    for drawn in (first, second):
        learnt = [*drawn.blocks, *drawn.texts, *(text for row in drawn.triplets for text in row)]
        assert not any(PLANTED in text for text in learnt)
        assert not set(drawn.blocks) & set(drawn.texts)
        assert sum(bench._count(drawn.blocks, None)) >= bench.size.tokens
    assert first.triplets != second.triplets


def test_what_settings_are_chosen_on_is_not_what_is_tested() -> None:
    from benchmarks.quality.data import part_of_train, sampled
    from bothways.evaluation import Classification, Clustering

    texts = sentences(3, 240)
    clusters = Clustering("t", texts, [str(place % 4) for place in range(240)])
    test, dev = sampled(clusters, 0, 80), sampled(clusters, 80, 40)
    assert (len(test.texts), len(dev.texts)) == (80, 40)
    assert not set(test.texts) & set(dev.texts)
    assert sorted(set(test.labels)) == ["0", "1", "2", "3"]
    assert test == sampled(clusters, 0, 80)
    whole = Classification("t", texts[:60], [str(place % 3) for place in range(60)], texts[60:], ["0"] * 180)
    part = part_of_train(whole)
    assert sorted([*part.train, *part.test]) == sorted(whole.train)
    assert sorted(part.test_labels) == ["0"] * 4 + ["1"] * 4 + ["2"] * 4


def test_a_key_holds_what_decides_a_cell_and_nothing_else(data: Path, tmp_path: Path) -> None:
    from benchmarks.quality.bench import chain
    from benchmarks.quality.cells import key_of
    from benchmarks.quality.settings import AFTER_MNTP, AFTER_SIMCSE, DEFAULT, LAST, OPENED

    bench = a_bench(data, tmp_path)

    def keys(seed: int = 0, **changes: Any) -> dict[str, str]:
        return {name: key_of(bench.why(step)) for name, step in chain("bothways", seed, {**DEFAULT, **changes}).items()}

    plain, other = keys(), keys(simcse={"learning_rate": 7e-4})
    assert len(set(plain.values())) == 4
    assert [plain[stage] == other[stage] for stage in plain] == [True, True, False, False]
    assert list(plain) == [OPENED, AFTER_MNTP, AFTER_SIMCSE, LAST]
    assert [plain[stage] == value for stage, value in keys(seed=1).items()] == [True, False, False, False]


def test_the_best_on_dev_is_chosen_stage_by_stage() -> None:
    from benchmarks.quality.choose import choose
    from benchmarks.quality.settings import AFTER_SIMCSE, GRID, LAST

    def scores(step: Any, split: str) -> dict[str, float]:
        assert split == "dev"
        best = {"mntp": 1e-3, "simcse": 2e-4, "supervised": 5e-4}
        return {"a": -sum(abs(step.chosen[name]["learning_rate"] - best[name]) for name in step.chosen), "b": 0.0}

    bench: Any = SimpleNamespace(scores=scores, decoder=SimpleNamespace(name="d"))
    chosen, rows = choose(bench, "bothways", None)
    assert chosen == {"mntp": GRID["mntp"][1], "simcse": GRID["simcse"][1], "supervised": GRID["supervised"][0]}
    assert [row["stage"] for row in rows] == [AFTER_SIMCSE] * 4 + [LAST] * 4
    assert rows[0]["settings"] == {"mntp": dict(GRID["mntp"][0]), "simcse": dict(GRID["simcse"][0])}


def test_the_test_takes_what_was_chosen_and_says_how(data: Path, tmp_path: Path) -> None:
    from benchmarks import quality
    from benchmarks.quality import page

    path = tmp_path / "choice.json"
    chosen = {"embedded": {"bothways": {"mntp": {"learning_rate": 3e-4}, "simcse": {"learning_rate": 2e-4}}}}
    given = argparse.Namespace(tiny=False, choice=path)
    assert quality._chosen(given)["chosen"] == {}
    rows = [{"stage": "+ SimCSE", "mean": 0.5}]
    path.write_text(json.dumps({"observed": {"chosen": chosen, "grid": {}}, "rows": rows, "command": "it"}))
    found = quality._chosen(given)
    assert (found["chosen"], found["tried"], found["command"]) == (chosen, rows, "it")
    table = page.settings({"observed": {"choice of settings": found}})
    assert "| embedded | bothways | learning rate 0.0003 | learning rate 0.0002 |" in table


def test_the_interval_of_a_difference_holds_it() -> None:
    from benchmarks.quality.summary import bootstrap

    same = {("d", task, seed): 0.25 for task in "abc" for seed in range(3)}
    assert bootstrap(same) == {"mean": 0.25, "interval": [0.25, 0.25], "cells": 9, "not worse": 9}
    rng = np.random.default_rng(0)
    noise = {("d", str(task), seed): float(rng.normal()) for task in range(7) for seed in range(3)}
    low, high = bootstrap(noise)["interval"]
    assert low < bootstrap(noise)["mean"] < high
    assert low < 0 < high


def test_the_order_is_said_to_hold_only_where_every_stage_rises() -> None:
    from benchmarks.quality.summary import differences, order

    def rows(values: Sequence[float]) -> list[dict[str, Any]]:
        stages = ("causal", "+ MNTP", "+ SimCSE", "+ supervised")
        found: list[dict[str, Any]] = []
        for seed in range(2):
            for stage, value in zip(stages, values, strict=True):
                given = None if stage == "causal" else seed
                same = {"decoder": "d", "side": "bothways", "stage": stage, "seed": given, "task": "t"}
                found.append({**same, "score": value})
        return found

    assert order(rows((0.1, 0.2, 0.3, 0.5)))["d"] == {"holds": True, "gains": [0.1, 0.1, 0.2]}
    fallen = order(rows((0.1, 0.4, 0.3, 0.5)))
    assert fallen["d"] == {"holds": False, "gains": [0.3, -0.1, 0.2]}
    peer = [{**row, "side": "llm2vec", "score": row["score"] - 0.05} for row in rows((0.1, 0.4, 0.3, 0.5))]
    found = differences([*rows((0.1, 0.4, 0.3, 0.5)), *peer], "llm2vec")
    assert found["+ SimCSE"]["d"]["mean"] == 0.05
    assert found["+ SimCSE"]["d"]["cells"] == 2


def test_the_form_for_older_libraries_gives_the_same_tokens(tiny_llama_folder: Path, tmp_path: Path) -> None:
    from benchmarks.quality.sides import older

    folder = tmp_path / "older"
    older(tiny_llama_folder, folder, 64)
    spelled = json.loads((folder / "tokenizer.json").read_text())
    assert all(isinstance(merge, str) for merge in spelled["model"]["merges"])
    old, new = (Tokenizer.from_file(str(path / "tokenizer.json")) for path in (folder, tiny_llama_folder))
    for text in ("open the file", "__init__ of a class", ""):
        assert old.encode(text).ids == new.encode(text).ids
    assert json.loads((folder / "config.json").read_text())["rope_theta"] == 10000.0


def test_sentence_transformers_is_given_the_steps_that_our_time_has_room_for(
    data: Path, tmp_path: Path, tiny_llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.quality import bench as benches
    from benchmarks.quality.bench import chain
    from benchmarks.quality.pace import PACED, pace, steps
    from benchmarks.quality.settings import AFTER_SIMCSE, DECODERS, DEFAULT, LAST, Decoder, tiny

    monkeypatch.setitem(DECODERS, "embedded", Decoder("random", str(tiny_llama_folder)))
    bench = a_bench(data, tmp_path)
    assert bench.decoder == tiny(DECODERS["embedded"])
    done: list[tuple[str, str, int]] = []

    def perform(side: str, job: Any, folder: Path) -> dict[str, Any]:
        done.append((side, job.stage, job.settings["steps"]))
        Path(job.out).mkdir(parents=True)
        return {"seconds": {"mntp": 40.0, "simcse": 60.0, "supervised": 30.0}[job.stage], "seconds of a step": 2.5}

    monkeypatch.setattr(benches, "perform", perform)
    found = pace(bench)
    assert steps(found) == {AFTER_SIMCSE: 40, LAST: 12}
    assert [(side, stage) for side, stage, _ in done] == [
        *(("bothways", stage) for stage in ("mntp", "simcse", "supervised")),
        *(("sentence-transformers", stage) for stage in ("simcse", "supervised")),
    ]
    assert [count for *_, count in done[3:]] == [PACED] * 2
    assert pace(bench) == found
    assert len(done) == 5
    chosen = chain("sentence-transformers", 0, DEFAULT, steps(found))
    assert [bench._settings(step)["steps"] for step in chosen.values()] == [40, 12]


def test_sentence_transformers_does_the_steps_that_it_is_given(
    tiny_llama_folder: Path, tmp_path: Path, real_texts: list[str]
) -> None:
    from benchmarks.peers.quality_wire import Job
    from benchmarks.quality.sides import causal_folder, perform

    causal_folder(tiny_llama_folder, tmp_path / "base", 64)
    triplets = [list(row) for row in zip(real_texts[:40], real_texts[40:80], real_texts[80:120], strict=True)]
    settings = {"batch_size": 5, "learning_rate": 1e-3, "warm_up": 0.2, "max_length": 16, "temperature": 0.05}
    job = Job(
        base=str(tmp_path / "base"),
        stage="supervised",
        # More than the triplets make in one epoch.
        settings={**settings, "steps": 11},
        examples=triplets,
        out=str(tmp_path / "out"),
        encode=real_texts[:3],
        vectors=str(tmp_path / "vectors.npy"),
    )
    facts = perform("sentence-transformers", job, tmp_path)
    assert facts["steps"] == 11
    assert 0 < facts["seconds of a step"] < facts["seconds"]
    assert np.load(tmp_path / "vectors.npy").shape == (3, 56)


def test_what_cannot_be_measured_is_said_at_once(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import llm2vec_env, quality

    with pytest.raises(SystemExit, match=r"nobody is called openai\. Use bothways, llm2vec, sentence-transformers"):
        quality.measure(options(data, tmp_path, "--only openai"))
    with pytest.raises(SystemExit, match=r"no decoder gpt-5\. Use embedded, babyllama-tok105"):
        quality.measure(options(data, tmp_path, "--only bothways --decoders gpt-5"))
    monkeypatch.setattr(llm2vec_env, "BUILT", tmp_path / "built")
    with pytest.raises(SystemExit, match=r"Build it with `python -m benchmarks.llm2vec_env`"):
        quality.measure(options(data, tmp_path))
