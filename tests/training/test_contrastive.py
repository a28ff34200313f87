"""Parity: contrastive steps on gloo processes, launched for real, give what one process gives. Contract: who dies."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parent))

from launching import run, weights, worst
from worker import train

from bothways import convert
from bothways.text import TextIds
from bothways.training.losses import info_nce
from bothways.training.objective import Objective, Pairs

SETTINGS = {
    "steps": 10,
    "batch_size": 5,
    "max_length": 24,
    # Rounding differs by how rows are dealt, more so without AVX-512, and Adam turns it into a share of a step.
    "learning_rate": 1e-3 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 5e-4,
    "temperature": 0.05,
    "lora_dropout": 0.0,
    "tokens_per_batch": 96,
}
CACHED = {"grad_cache": True, "tokens_per_batch": 48}
SUPERVISED = {"stage": "supervised"}
# Dropout is drawn pass by pass, and other processes make other passes. Without it both views are the same, but the
# other texts still push them.
SIMCSE = {"stage": "simcse", "alike": True}
JOBS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "supervised": ({"tune": "full"}, SUPERVISED),
    "supervised cached": ({"tune": "lora", **CACHED}, SUPERVISED),
    "simcse": ({"tune": "full", "dropout": 0.0}, SIMCSE),
    "simcse cached": ({"tune": "full", "dropout": 0.0, **CACHED}, SIMCSE),
    "sharded": ({"tune": "full", "tokens_per_batch": 48}, {**SUPERVISED, "shard": True}),
    "sharded cached": ({"tune": "full", **CACHED}, {**SUPERVISED, "shard": True}),
    "starved before": ({"tune": "full"}, {**SUPERVISED, "starve": {"rank": 0, "step": 3, "when": "before"}}),
    "starved after": ({"tune": "full", **CACHED}, {**SUPERVISED, "starve": {"rank": 0, "step": 3, "when": "after"}}),
}
DROPPED = {"tune": "full", "steps": 4, "dropout": 0.3, "embedding_dropout": 0.1, "tokens_per_batch": 48}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_llama_folder: Path, real_texts: list[str]) -> dict[str, Path]:
    texts = tmp_path_factory.mktemp("texts") / "texts.txt"
    texts.write_text("\n".join(real_texts[:50]) + "\n", encoding="utf-8")
    return {"base": tiny_llama_folder, "texts": texts}


@pytest.fixture(scope="module")
def launched(base: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Runs on two processes, in one launch, because starting costs more than they do."""
    folder = tmp_path_factory.mktemp("launched")
    dropped = {f"dropped {cache}": ({**DROPPED, "grad_cache": cache}, {"stage": "simcse"}) for cache in (False, True)}
    jobs = {
        name: {**base, "out": folder / f"{number}.pt", "settings": {**SETTINGS, **settings}, **more}
        for number, (name, (settings, more)) in enumerate((JOBS | dropped).items())
    }
    code, said = run(*jobs.values(), processes=2)
    assert code == 0, said
    assert said.count("out of memory: 48 tokens at once instead of 96, the same step again") == 1
    assert said.count("out of memory: 24 tokens at once instead of 48, the same step again") == 1
    return jobs


@pytest.mark.parametrize("name", JOBS)
def test_two_processes_equal_one(base: dict[str, Path], launched: dict[str, dict[str, Any]], name: str) -> None:
    """Float32, one thread, no dropout, negatives of both processes, 10 steps; `starved` runs out of memory in one."""
    settings = {**SETTINGS, **JOBS[name][0]}
    how = {key: value for key, value in JOBS[name][1].items() if key in ("stage", "alike")}
    alone = train({**base, "settings": settings, **how}).state_dict()
    untrained = convert(base["base"], dtype="float32", device="cpu").state_dict()
    assert worst(alone, weights(launched[name])) <= 1e-5
    assert worst(alone, untrained) > 1e-3


def test_a_process_without_a_row_takes_every_step(base: dict[str, Path], tmp_path: Path) -> None:
    """Three of them, and one query with one document; weight decay alone teaches something then."""
    settings = {**SETTINGS, "steps": 3, "batch_size": 1, "negatives": 0, "tune": "full", "weight_decay": 0.5}
    job = {**base, "out": tmp_path / "out.pt", "stage": "supervised", "settings": settings}
    code, said = run(job, processes=3)
    assert code == 0, said
    assert worst(train(job).state_dict(), weights(job)) <= 1e-5


def test_under_dropout_two_processes_replay_what_they_drew(launched: dict[str, dict[str, Any]]) -> None:
    plain, cached = (weights(launched[f"dropped {cache}"]) for cache in (False, True))
    assert worst(plain, cached) <= 1e-5


@pytest.mark.parametrize("how", ["SIGKILL", "raise"])
def test_where_one_process_dies_the_others_stop_with_one_error(base: dict[str, Path], tmp_path: Path, how: str) -> None:
    """Which happens where the other one waits for its vectors."""
    die = {"rank": 1, "step": 3, "how": how}
    job = {**base, "out": tmp_path / "out.pt", "stage": "simcse", "settings": {**SETTINGS, "dropout": 0.3}, "die": die}
    # Before the launcher ends the other one, that shall have its say, also on a busy machine.
    code, said = run(job, processes=2, look=3)
    assert code == 1
    errors = [line for line in said.splitlines() if line.startswith("process 0:")]
    assert len(errors) == 1, said
    expected = "another process of this run has died" if how == "SIGKILL" else "process 1 of this run has failed"
    assert errors[0].startswith(f"process 0: TrainingError: {expected}")
    assert how == "SIGKILL" or "this process is ill" in said


def test_apart_a_batch_is_so_many_batches_of_their_own() -> None:
    """Seven examples in two blocks, dealt in turn; the hard negatives of an example go with it."""
    row = TextIds([2], [True])
    owners = [*range(7), 0, 0, 3, 5, 6, 6]
    ignore = torch.zeros(7, 13, dtype=torch.bool)
    ignore[2, 4] = ignore[4, 2] = True
    pairs = Pairs([row] * 7, [row] * 13, ignore, owners)
    vectors = torch.randn(20, 5)
    queries, documents = vectors[:7], vectors[7:]
    losses = []
    for block in (0, 1):
        items = [i for i in range(7) if i % 2 == block]
        places = items + [place for place in range(7, 13) if owners[place] % 2 == block]
        own = info_nce(queries[items], documents[places], temperature=0.3, ignore=ignore[items][:, places])
        losses.append(own * len(items) / 7)
    loss = Objective(0.3)
    torch.testing.assert_close(loss(pairs.apart(2), vectors), sum(losses))
    torch.testing.assert_close(loss(pairs.apart(1), vectors), loss(pairs, vectors))
