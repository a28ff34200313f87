"""The plan of a large corpus: its sums, and the simulation that is to agree with them."""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModel

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.peers.condition import CPU_SHAPES, CUDA_SHAPES
from benchmarks.scale import HOUR, Cluster, arguments, expected, forward_flops, planned, simulated, vector_bytes


@pytest.mark.parametrize(("between", "seconds"), [(6 * HOUR, 300.0), (1 * HOUR, 120.0), (0.25 * HOUR, 60.0)])
def test_the_simulation_agrees_with_the_sum(between: float, seconds: float) -> None:
    cluster = Cluster(workers=7, between=between, restart=90.0)
    runs = [simulated(cluster, 2000, seconds, random.Random(seed)) for seed in range(8)]
    taken = statistics.mean(run["seconds"] for run in runs)
    assert taken == pytest.approx(expected(cluster, 2000, seconds), rel=0.02)
    assert taken > 2000 * seconds / 7
    # Of what is at work; while a worker is on its way back it is not interrupted.
    working = taken * 7 - statistics.mean(run["interruptions"] for run in runs) * cluster.restart
    assert statistics.mean(run["interruptions"] for run in runs) == pytest.approx(working / between, rel=0.05)


def test_without_interruption_nothing_is_lost() -> None:
    run = simulated(Cluster(3, 1e12, 60.0), 300, 10.0, random.Random(1))
    assert (run["interruptions"], run["lost"]) == (0, 0)
    assert run["seconds"] == pytest.approx(1000, rel=0.05)


def test_operations_of_a_token_are_those_of_its_matrices() -> None:
    shape = dict(CPU_SHAPES["vocab-32k"])
    config = AutoConfig.for_model(shape["kind"], **{name: value for name, value in shape.items() if name != "kind"})
    weights = sum(item.numel() for name, item in AutoModel.from_config(config).named_parameters() if item.ndim == 2)
    weights -= shape["vocab_size"] * shape["hidden_size"]
    assert forward_flops(shape, 0) == 2 * weights
    assert forward_flops(shape, 100) - forward_flops(shape, 0) == 8 * 4 * 100 * 512


def test_a_plan_adds_up() -> None:
    parser = argparse.ArgumentParser()
    arguments(parser)
    options = parser.parse_args(["--documents", "1000", "--tokens", "100", "--share", "0.25", "--price", "3"])
    plan = planned(CUDA_SHAPES["qwen3-0.6b"], options)
    assert plan["tokens"] == 100_000
    assert plan["dollars"] == pytest.approx(3 * plan["GPU hours"])
    assert plan["tokens a second and GPU"] * plan["FLOPs of a token"] == pytest.approx(0.25 * 989.4e12)
    assert plan["bytes of the vectors"]["float32"] == 1000 * 1024 * 4
    assert [vector_bytes(20, name) for name in ("float32", "float16", "int8", "ubinary")] == [80, 40, 20, 3]
