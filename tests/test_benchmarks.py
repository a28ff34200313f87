"""Contract: a results file says how it was made, and the README's parts are made of results files alone."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bothways import MNTP, Supervised, convert
from bothways.stages.mntp import mntp_loss
from bothways.training.tuning import tuned

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def test_the_demos_results_are_read_and_framed(tmp_path: Path) -> None:
    from benchmarks import demo
    from benchmarks.frame import framed

    steps = {"tf-idf": 0.5, "causal decoder": 0.1, "+ supervised": 0.4}
    found = {
        "rows": [{"step": name, "ndcg@10": value} for name, value in steps.items()],
        "documentation": {},
        "recipe": {},
        "hardware": {"processor": "another", "threads": 7},
        "seconds": 1.5,
        "peak_memory_bytes": 2,
        "answers": [],
    }
    (tmp_path / "demo.json").write_text(json.dumps(found))
    findings = demo.measure(argparse.Namespace(done=tmp_path))
    assert findings.observed["ndcg@10 over causal decoder"] == 4.0
    assert findings.observed["ndcg@10 over tf-idf"] == 0.8
    written = framed(findings, "python -m benchmarks demo")
    assert written["command"] == "bothways demo"
    assert set(written) == {"versions", "commit", "command", "hardware", "rows", "ratios", "observed"}
    assert [row["step"] for row in written["rows"]] == list(steps)
    assert written["versions"]["torch"]
    assert written["hardware"] == found["hardware"]


def test_every_committed_result_has_the_frame() -> None:
    paths = list((ROOT / "benchmarks" / "results").glob("*.json"))
    assert paths
    for path in paths:
        found = json.loads(path.read_text(encoding="utf-8"))
        assert {"versions", "commit", "command", "hardware", "rows", "ratios", "observed"} == set(found), path.name
        # A file is named after its benchmark, and after a dash what was asked of it.
        name = path.stem.partition("-")[0]
        assert found["command"].startswith((f"python -m benchmarks {name} ", f"bothways {name}")), path.name


def test_a_readme_without_its_markers_is_not_silently_left_alone() -> None:
    from benchmarks import readme

    with pytest.raises(SystemExit, match="the markers of the part"):
        readme.generated("# a page\n")
    with pytest.raises(SystemExit, match=r'performance\.md: the markers of the part "mntp" are gone'):
        readme.generated("# a page\n", readme.PERFORMANCE)


def _figures(loss: float, trained: int) -> dict[str, Any]:
    return {"loss": loss, "trained": trained}


def _condition(**changes: Any) -> Any:
    from benchmarks.peers.condition import TINY
    from benchmarks.peers.masked import Masked

    shape = {"kind": "llama", **TINY, "intermediate_size": 56, "vocab_size": 531}
    given: dict[str, Any] = {"tune": "lora", "batch": 3, "tokens": 37, "device": "cpu"}
    return Masked("tiny", shape, **{**given, **changes})


def _step(name: str = "plain-16", tune: str = "full") -> Any:
    from benchmarks import contrastive

    return contrastive.conditioned(name, tune, tiny=True)


def test_peers_that_do_other_work_are_not_timed() -> None:
    from benchmarks.beside import same_work

    ours = {"bothways": _figures(6.5, 17)}
    same_work(
        _condition(), {**ours, "transformers, sdpa": _figures(6.50001, 17), "llm2vec, eager": _figures(6.5003, 17)}
    )
    with pytest.raises(
        SystemExit, match=r"transformers, sdpa computes the loss 6.501000 where bothways computes 6.5000"
    ):
        same_work(_condition(), {**ours, "transformers, sdpa": _figures(6.501, 17)})
    same_work(_condition(), {**ours, "transformers, sdpa": _figures(6.501, 17)}, slack=100)
    with pytest.raises(SystemExit, match=r"llm2vec, eager trains 18 weights where bothways trains 17"):
        same_work(_condition(), {**ours, "llm2vec, eager": _figures(6.5, 18)})


def test_of_two_kinds_of_attention_a_peer_is_measured_with_the_faster() -> None:
    from benchmarks import beside

    wanted = beside.variants({"llm2vec": beside.KINDS["cpu"]})
    seconds = {"bothways": 9.0, "matmuls": 1.0, "llm2vec, sdpa": 3.0, "llm2vec, eager": 2.0}
    assert list(wanted) == list(seconds)
    rows = [{"variant": name, "round": 1, "seconds": value} for name, value in seconds.items()]
    rows.append({"variant": "llm2vec, sdpa", "round": 0, "seconds": 0.1})
    assert beside.slower(rows, wanted) == ["llm2vec, sdpa"]
    assert ["".join(beside.turn(["a", "b", "c"], number)) for number in range(4)] == ["abc", "bca", "cab", "abc"]


def test_what_cannot_be_measured_is_said_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from benchmarks import llm2vec_env, mntp

    parser = argparse.ArgumentParser()
    mntp.arguments(parser)
    monkeypatch.setattr(llm2vec_env, "BUILT", tmp_path / "built")
    with pytest.raises(SystemExit, match=r"Build it with `python -m benchmarks.llm2vec_env`"):
        mntp.peers(parser.parse_args([]))
    assert mntp.peers(parser.parse_args(["--device", "cuda"])) == ["transformers"]
    with pytest.raises(SystemExit, match=r"no shape qwen3-0\.6b on cpu\. Use vocab-32k, vocab-128k"):
        mntp.conditions(parser.parse_args(["--shapes", "qwen3-0.6b"]))
    with pytest.raises(SystemExit, match="benchmarks mntp: --rounds 1"):
        mntp.peers(parser.parse_args(["--rounds", "1"]))
    names = [condition.name for condition in mntp.conditions(parser.parse_args([]))]
    assert names == ["vocab-32k-lora", "vocab-32k-full", "vocab-128k-lora", "vocab-128k-full"]


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_the_floor_is_what_a_real_step_multiplies(tune: str, tmp_path: Path) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.peers.mntp_matmuls import products

    condition = _condition(tune=tune)
    condition.make(tmp_path)
    encoder = convert(tmp_path, attn_implementation="eager")
    job = condition.job(tmp_path, "eager")
    config = encoder.model.config
    ids = torch.randint(4, 531, (condition.batch, condition.tokens))
    labels = torch.full_like(ids, -100)
    predicted = round(job.mask_rate * condition.batch * (condition.tokens - 1))
    rows = torch.randperm(condition.batch * (condition.tokens - 1))[:predicted]
    labels[rows // (condition.tokens - 1), 1 + rows % (condition.tokens - 1)] = 7
    with tuned(encoder, MNTP(tune=tune), torch.float32), FlopCounterMode(display=False) as counted:
        mntp_loss(encoder, ids.tolist(), labels.tolist())[0].backward()
    assert counted.get_total_flops() == sum(product.operations for product in products(config, job))


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_the_floor_of_mixed_lengths_is_that_of_each_text_alone(tune: str, tmp_path: Path) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.peers.contrastive_matmuls import SIMILARITIES, products
    from benchmarks.peers.triplets import COLUMNS, triplets

    condition = _step(tune=tune)
    condition.make(tmp_path)
    encoder = convert(tmp_path, attn_implementation="eager")
    job = condition.job(tmp_path, "eager")
    texts = [row[column] for row in triplets(job) for column in COLUMNS]
    rows = encoder.tokenise(texts)
    assert sorted(map(len, rows)) == sorted(length for column in condition.lengths().values() for length in column)
    with tuned(encoder, Supervised(tune=tune), torch.float32), FlopCounterMode(display=False) as counted:
        for row in rows:
            encoder.token_states([row.ids]).sum().backward()
    wanted = list(products(encoder.model.config, job))
    assert counted.get_total_flops() == sum(item.operations for item in wanted if item.part != SIMILARITIES)
    # Forward, and the gradients of both sides: 4 queries, 8 documents, 40 wide.
    assert sum(item.operations for item in wanted if item.part == SIMILARITIES) == 3 * 2 * 4 * 8 * 40


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_every_product_of_a_step_belongs_to_a_part(tune: str, tiny_llama_folder: Path) -> None:
    from benchmarks.peers.parts import ADAPTERS, ATTENTION, HEAD, LINEAR, OPTIMISER, Profile

    encoder = convert(tiny_llama_folder, attn_implementation="eager")
    ids = torch.randint(4, 500, (3, 11))
    with tuned(encoder, MNTP(tune=tune), torch.float32) as weights:
        masters = list(weights.masters.values())
        optimiser, profile = torch.optim.AdamW(masters), Profile(encoder)
        hooks = sum(len(module._forward_hooks) for module in encoder.modules())
        profile.start()
        mntp_loss(encoder, ids.tolist(), ids.tolist())[0].backward()
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        optimiser.step()
        parts = profile.stop()
        assert sum(len(module._forward_hooks) for module in encoder.modules()) == hooks
    multiplying = {name for name, part in parts.items() if part["multiplying"] > 0}
    # The rotary angles are a product, too.
    expected = {LINEAR, ATTENTION, HEAD} | ({ADAPTERS} if tune == "lora" else set())
    assert multiplying == expected
    assert parts[OPTIMISER]["seconds"] > 0
    assert all(part["multiplying"] <= part["seconds"] for part in parts.values())


def test_a_step_is_measured_beside_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import mntp, performance

    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.setitem(mntp.KINDS, "cpu", ("sdpa",))
    parser = argparse.ArgumentParser()
    mntp.arguments(parser)
    given = "--tiny --tokens 37 --batch 3 --rounds 2 --shapes vocab-32k --tune lora --peers transformers"
    findings = mntp.measure(parser.parse_args(given.split()))
    found = findings.observed["vocab-32k-lora"]
    peer = "transformers, sdpa"
    assert set(found["seconds"]) == set(found["memory"]) == {"bothways", peer}
    assert found["ready"]["bothways"]["attention"] == "packed_eager"
    assert {row["round"] for row in findings.rows} == {0, 1, 2}
    assert findings.ratios == {}
    assert findings.hardware["threads"] == 1
    assert all(0 < share < 1 for share in found["share of the floor"].values())
    tables = {"observed": findings.observed}
    seconds, ours = found["seconds"][peer], found["seconds"]["bothways"]
    assert f"| {seconds:.2f} ({seconds / ours:.2f}x) |" in performance.steps(tables)
    assert "| linear layers |" in performance.parts(tables)
    assert "| share of a step, bothways |" in performance.floor(tables)
    assert performance.attention(tables) == "transformers: sdpa"


def test_the_death_of_a_worker_says_why(tmp_path: Path) -> None:
    from benchmarks.peers.worker import DiedError, Worker

    worker = Worker("floor", "matmuls", "auto", _condition(), tmp_path)
    with pytest.raises(DiedError, match=r"(?s)floor ended with exit code 1:.*config"):
        worker.ready()
    worker.stop()


def test_the_lengths_of_a_contrastive_step_are_mixed_and_no_draw(tmp_path: Path) -> None:
    condition = _step("cached-64")
    lengths = condition.lengths()
    assert lengths == _step("cached-64").lengths()
    assert {column: sorted(found)[7:9] for column, found in lengths.items()} == {
        "query": [10, 10],
        "positive": [29, 31],
        "negative": [29, 31],
    }
    assert lengths["positive"] != lengths["negative"]
    columns = [lengths["query"], lengths["positive"], lengths["negative"]]
    halves = [half for column in columns for half in (column[:8], column[8:])]
    tokens = sum(map(sum, columns))
    assert condition.padding() == {"tokens": tokens, "padding": sum(8 * max(half) for half in halves) / tokens}


def test_a_causal_model_would_be_other_work(tmp_path: Path) -> None:
    from benchmarks.beside import same_work
    from benchmarks.peers.contrastive_bothways import loss_of

    condition = _step()
    condition.make(tmp_path)
    job = condition.job(tmp_path, "auto")
    both, causal = (loss_of(convert(tmp_path, direction=way), job) for way in ("bidirectional", "causal"))
    with pytest.raises(SystemExit, match=r"benchmarks contrastive: plain-16-full: llm2vec, sdpa computes the loss"):
        same_work(condition, {"bothways": _figures(both, 7), "llm2vec, sdpa": _figures(causal, 7)})


def test_a_contrastive_step_is_measured_beside_sentence_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import contrastive, performance

    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.setitem(contrastive.KINDS, "cpu", ("sdpa",))
    parser = argparse.ArgumentParser()
    contrastive.arguments(parser)
    given = "--tiny --rounds 2 --steps cached-64 --peers sentence-transformers"
    findings = contrastive.measure(parser.parse_args(given.split()))
    found = findings.observed["cached-64-full"]
    peer = "sentence-transformers, sdpa"
    assert set(found["seconds"]) == set(found["memory"]) == {"bothways", peer}
    losses = {name: [row["loss"] for row in findings.rows if row["variant"] == name] for name in ("bothways", peer)}
    assert losses[peer] == pytest.approx(losses["bothways"], rel=1e-4)
    assert losses[peer][0] == pytest.approx(found["ready"]["bothways"]["loss"], rel=1e-5)
    assert losses[peer][-1] < losses[peer][0]
    assert set(findings.ratios) == {
        f"contrastive/cached-64-full/{kind}/sentence-transformers" for kind in ("time", "memory")
    }
    table = performance.steps({"observed": findings.observed})
    assert f"| cached-64-full | 1,252 | {found['padding']:.2f}x | {found['seconds']['bothways']:.2f} |" in table


def test_contrastive_peers_whose_environment_is_missing_are_said_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from benchmarks import contrastive, llm2vec_env

    parser = argparse.ArgumentParser()
    contrastive.arguments(parser)
    monkeypatch.setattr(llm2vec_env, "BUILT", tmp_path / "built")
    with pytest.raises(SystemExit, match="benchmarks contrastive: the environment of llm2vec is not there"):
        contrastive.measure(parser.parse_args([]))


def test_the_plan_of_a_recipe_is_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """With two narrow layers for the real model's 28."""
    from benchmarks import plans

    narrow = {"hidden_size": 40, "num_hidden_layers": 2, "head_dim": 10, "intermediate_size": 56, "vocab_size": 531}
    monkeypatch.setattr(plans, "SHAPE", {**plans.SHAPE, **narrow})
    found = plans.measure(argparse.Namespace())
    assert [(row["stage"], row["count"], row["rows"]) for row in found.rows] == [
        ("mntp", 1, 32),
        ("supervised", 1, 512 * 3),
        ("mntp", 8, 32),
        ("supervised", 8, 512 * 3),
    ]
    content = {"rows": found.rows, "observed": found.observed, "command": "python -m benchmarks plans"}
    lines = plans.table(content).splitlines()
    assert len(lines) == 2 + 4
    assert lines[4].startswith("| mntp | 8 x h200 | 32 x 512 |")
    assert "Time: 40% of the peak in the NVIDIA H200" in plans.made(content)


def test_the_committed_plan_is_of_the_recipe_as_it_is() -> None:
    from benchmarks import plans
    from bothways.provenance import EncoderSettings
    from bothways.recipe import read
    from bothways.training.plan import row_tokens, rows_of

    rows = json.loads((ROOT / "benchmarks/results/plans.json").read_text(encoding="utf-8"))["rows"]
    recipe = read(ROOT / plans.RECIPE, files_exist=False)
    encoder = EncoderSettings(max_length=recipe.convert.max_length)
    expected = [
        (
            step.stage,
            rows_of(step.settings),
            row_tokens(step.settings, encoder),
            step.settings.tune,
            step.settings.steps,
        )
        for step in recipe.steps
    ]
    found = [(row["stage"], row["rows"], row["row_tokens"], row["tune"], row["steps"]) for row in rows]
    assert found == expected * len(plans.COUNTS)
