"""A billion documents: tokens, GPU hours, storage, cost, and what failures cost, by sums and by a simulation."""

from __future__ import annotations

import argparse
import heapq
import math
import random
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.frame import Findings
from benchmarks.peers.condition import CUDA_SHAPES
from bothways import hardware
from bothways.evaluation.tables import markdown
from bothways.precision import PRECISIONS, Precision, stored_dim

HOUR, DAY = 3600.0, 86400.0
SPREAD = 0.2
"""Standard deviation of the logarithm of a part's duration: texts differ, and so do machines."""
INTERRUPTIONS = {"steady": 54 * 24 * 16_384 / 419, "spot": 12.0}
"""Hours of one GPU between two interruptions. steady: 419 in 54 days on 16,384 GPUs (Llama Team 2024, The Llama 3 Herd
of Models, arXiv 2407.21783, section 3.3.4). spot: assumed, two a day."""
PARTS = (0.5, 2.0, 10.0, 60.0)
"""Minutes of work in one part, which is what an interruption loses at most."""


@dataclass(frozen=True)
class Cluster:
    """What works, and how often it is interrupted."""

    workers: int
    between: float
    """Mean seconds of one worker from one interruption to the next, exponentially distributed."""
    restart: float
    """Seconds until a worker is back with its model loaded."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """What is planned."""
    parser.add_argument("--documents", type=float, default=1e9, help="how many")
    parser.add_argument("--tokens", type=float, default=300, help="tokens of a document, on average")
    parser.add_argument("--share", type=float, default=0.5, help="share of the data sheet's bfloat16 rate: assumed")
    parser.add_argument("--gpu", default="h200", choices=hardware.ACCELERATORS, help="what every worker has")
    parser.add_argument("--workers", type=int, default=16, help="how many of them")
    parser.add_argument("--price", type=float, default=4.0, help="dollars of a GPU hour: assumed")
    parser.add_argument("--restart", type=float, default=120.0, help="seconds until a worker is back: assumed")
    parser.add_argument("--runs", type=int, default=20, help="simulations of every case")


def measure(options: argparse.Namespace) -> Findings:
    """The sums for every shape, and for the first one what interruptions cost by the size of a part."""
    plans = {name: planned(shape, options) for name, shape in CUDA_SHAPES.items()}
    work = next(iter(plans.values()))["GPU hours"] * HOUR
    rows = []
    for kind, hours in INTERRUPTIONS.items():
        cluster = Cluster(options.workers, hours * HOUR, options.restart)
        for minutes in PARTS:
            parts = max(1, round(work / (minutes * 60)))
            found = [simulated(cluster, parts, work / parts, random.Random(seed)) for seed in range(options.runs)]
            taken = statistics.mean(one["seconds"] for one in found)
            rows.append(
                {
                    "workers": kind,
                    "minutes of a part": minutes,
                    "parts": parts,
                    "interruptions a day": statistics.mean(one["interruptions"] for one in found) / (taken / DAY),
                    "interruptions a day, by the sum": options.workers * DAY / cluster.between,
                    "hours": taken / HOUR,
                    "hours, by the sum": expected(cluster, parts, work / parts) / HOUR,
                    "hours without interruption": work / options.workers / HOUR,
                    "done again": statistics.mean(one["lost"] for one in found) / work,
                }
            )
    return Findings(
        rows,
        observed={
            "plans": plans,
            "assumed": {name: value for name, value in vars(options).items() if name not in ("json", "name")},
        },
    )


def planned(shape: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Tokens, FLOPs, GPU hours, dollars, and bytes of the vectors in every number format."""
    tokens = options.documents * options.tokens
    each = forward_flops(shape, options.tokens)
    seconds = tokens * each / (hardware.accelerator(options.gpu).bf16 * options.share)
    dim = shape["hidden_size"]
    sizes = {name: options.documents * vector_bytes(dim, name) for name in PRECISIONS}
    return {
        "tokens": tokens,
        "FLOPs of a token": each,
        "tokens a second and GPU": tokens / seconds,
        "GPU hours": seconds / HOUR,
        "dollars": seconds / HOUR * options.price,
        "dim": dim,
        "bytes of the vectors": sizes,
    }


def forward_flops(shape: dict[str, Any], tokens: float) -> float:
    """Of one token in a text of so many: two for each weight of the decoder layers, and attention."""
    width, layers = shape["hidden_size"], shape["num_hidden_layers"]
    size = shape.get("head_dim", width // shape["num_attention_heads"])
    queries, keys = shape["num_attention_heads"] * size, shape["num_key_value_heads"] * size
    weights = width * (2 * queries + 2 * keys) + 3 * width * shape["intermediate_size"]
    return layers * (2 * weights + 4 * tokens * queries)


def vector_bytes(dim: int, precision: str) -> int:
    """Of one vector as it is stored, uncompressed."""
    wanted: Any = precision
    number: Precision = wanted
    return stored_dim(dim, number) * PRECISIONS[number]().itemsize


def simulated(cluster: Cluster, parts: int, seconds: float, draw: random.Random) -> dict[str, float]:
    """One run: every worker takes the next part when it is done with one; an interruption loses what it had begun.

    `seconds`: mean duration of a part. Returns the seconds until the last part is there, the interruptions, and the
    seconds of work that were lost.
    """
    # (when it is free, its number); each worker's next interruption beside it.
    free = [(0.0, worker) for worker in range(cluster.workers)]
    ends = [draw.expovariate(1 / cluster.between) for _ in range(cluster.workers)]
    # A log-normal draw of this mean.
    mean = math.log(seconds) - SPREAD**2 / 2
    waiting = [draw.lognormvariate(mean, SPREAD) for _ in range(parts)]
    last = lost = interruptions = 0.0
    while waiting:
        now, worker = heapq.heappop(free)
        while ends[worker] < now:
            # Interrupted while it waited to be back: that is part of the same interruption.
            ends[worker] += draw.expovariate(1 / cluster.between)
        taken = waiting.pop()
        if now + taken <= ends[worker]:
            last = max(last, now + taken)
            heapq.heappush(free, (now + taken, worker))
            continue
        interruptions += 1
        lost += ends[worker] - now
        waiting.append(taken)
        heapq.heappush(free, (ends[worker] + cluster.restart, worker))
    return {"seconds": last, "interruptions": interruptions, "lost": lost}


def expected(cluster: Cluster, parts: int, seconds: float) -> float:
    """The same by a sum: a part of t seconds takes (e^(t/b) - 1) (b + r) where interruptions come every b seconds.

    That is the mean of tries until one is not interrupted, each interruption followed by r seconds; see Daly 2006, A
    higher order estimate of the optimum checkpoint interval. Half a part is added for workers that wait for the last.
    """
    each = math.expm1(seconds / cluster.between) * (cluster.between + cluster.restart)
    return parts * each / cluster.workers + seconds / 2


def plan_table(found: Mapping[str, Any]) -> str:
    """The plan of every shape."""
    rows = []
    for name, plan in found["observed"]["plans"].items():
        sizes = {f"TB, {number}": f"{size / 1e12:,.2f}" for number, size in plan["bytes of the vectors"].items()}
        rows.append(
            {
                "shape": name,
                "tokens": f"{plan['tokens']:.1e}",
                "GFLOPs of a token": f"{plan['FLOPs of a token'] / 1e9:.2f}",
                "tokens a second and GPU": f"{plan['tokens a second and GPU']:,.0f}",
                "GPU hours": f"{plan['GPU hours']:,.0f}",
                "dollars": f"{plan['dollars']:,.0f}",
                **{name: size for name, size in sizes.items() if "uint8" not in name and "ubinary" not in name},
            }
        )
    return markdown(rows)


def failure_table(found: Mapping[str, Any]) -> str:
    """What interruptions cost, by the simulation and by the sum."""
    return markdown(
        [
            {
                "workers": row["workers"],
                "minutes of a part": f"{row['minutes of a part']:g}",
                "parts": f"{row['parts']:,}",
                "interruptions a day": f"{row['interruptions a day']:.1f}",
                "by the sum": f"{row['interruptions a day, by the sum']:.1f}",
                "hours": f"{row['hours']:.2f}",
                "hours, by the sum": f"{row['hours, by the sum']:.2f}",
                "without interruption": f"{row['hours without interruption']:.2f}",
                "work done again": f"{row['done again']:.2%}",
            }
            for row in found["rows"]
        ]
    )


def assumed(found: Mapping[str, Any]) -> str:
    """What the figures rest on."""
    given = found["observed"]["assumed"]
    return (
        f"{given['documents']:.0e} documents of {given['tokens']:g} tokens; {given['workers']} workers with one "
        f"{given['gpu'].upper()} each, at {given['share']:.0%} of the data sheet's bfloat16 rate; {given['price']:g} "
        f"dollars a GPU hour; {given['restart']:g} s until an interrupted worker is back. By `{found['command']}`."
    )
