"""How the cost of encoding grows: CPU time per token and memory from a thousand to a million short texts."""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.frame import ROOT, Findings, say
from bothways.evaluation.tables import markdown

SHAPE = {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2, "num_attention_heads": 2}
WORDS = (2, 6)
"""Fewest and most words of a text."""
SIZES = (1_000, 10_000, 100_000, 1_000_000)
START = 10
"""Texts of a corpus job that is nearly all start: what it takes is taken off the others."""
CALL, JOB = WORKS = "Encoder.encode", "bothways encode"
FLAT_FROM = 100_000
"""Texts from which on a corpus job's memory must not grow."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """How far it goes."""
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="numbers of texts, rising")
    parser.add_argument(
        "--rounds", type=int, default=3, help="runs of every size up to 100,000 texts; the least counts"
    )


def measure(options: argparse.Namespace) -> Findings:
    """One call of `Encoder.encode`, and one `bothways encode` of a text file, for every number of texts."""
    sizes = sorted(options.sizes)
    if len(sizes) < 2 or sizes[0] <= START or options.rounds < 1:
        raise SystemExit(f"benchmarks growth: two --sizes above {START} at least, and --rounds of 1 at least.")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokens = _prepared(folder, sizes)
        for work in WORKS:
            for count in sizes:
                for number in range(options.rounds if count <= FLAT_FROM else 1):
                    found = _once(work, folder, count)
                    rows.append({"work": work, "texts": count, "round": number, "tokens": tokens[count], **found})
                    say(json.dumps(rows[-1]))
    return Findings(rows, observed={**grown(rows), "shape": SHAPE})


def grown(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """CPU microseconds per token, memory, and how many times as much of both the largest takes."""
    found: dict[str, Any] = {}
    for work in dict.fromkeys(row["work"] for row in rows):
        mine = [row for row in rows if row["work"] == work]
        least = {count: min(row["seconds"] for row in mine if row["texts"] == count) for count in _counts(mine)}
        memory = {count: max(row["memory"] for row in mine if row["texts"] == count) for count in _counts(mine)}
        tokens = {row["texts"]: row["tokens"] for row in mine}
        each = {count: 1e6 * seconds / tokens[count] for count, seconds in least.items()}
        smallest, largest = min(each), max(each)
        found[work] = {
            "CPU microseconds per token": each,
            "memory": memory,
            f"time per token, {largest:,} texts to {smallest:,}": each[largest] / each[smallest],
        }
        flat = [count for count in each if count >= FLAT_FROM]
        if work == JOB and len(flat) > 1:
            found[work][f"memory, {flat[-1]:,} texts to {flat[0]:,}"] = memory[flat[-1]] / memory[flat[0]]
    return found


def _counts(rows: list[dict[str, Any]]) -> list[int]:
    return sorted({row["texts"] for row in rows})


def texts() -> Iterator[str]:
    """Short ones without end, of the words of the Python documentation's topics; hardly one is there twice."""
    from pydoc_data.topics import topics

    words = sorted({word for word in " ".join(topics.values()).split() if word.isalpha()})
    rng = random.Random(0)
    while True:
        yield " ".join(rng.choices(words, k=rng.randint(*WORDS)))


def _prepared(folder: Path, sizes: list[int]) -> dict[int, int]:
    """A tiny encoder and a file of texts for every size; the tokens of each file."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from bothways import convert, loading

    tokenizer = loading.load_tokenizer(loading.EMBEDDED, trust_remote_code=False)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **SHAPE))
    model.save_pretrained(folder / "decoder")
    tokenizer.save_pretrained(folder / "decoder")
    convert(folder / "decoder", max_length=64).save_pretrained(folder / "encoder", head=False)
    tokens = {}
    for count in [START, *sizes]:
        some = list(islice(texts(), count))
        (folder / f"{count}.txt").write_text("\n".join(some) + "\n", encoding="utf-8")
        encoded = tokenizer.backend_tokenizer.encode_batch_fast(some)
        tokens[count] = sum(map(len, encoded))
    return tokens


def _once(work: str, folder: Path, count: int) -> dict[str, float]:
    """CPU seconds and the resident set's high-water mark of one run in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.peers.growing", work, str(folder), str(count)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace")
    if done.returncode:
        told = done.stderr[-2000:]
        raise SystemExit(f"benchmarks growth: {work} of {count:,} texts ended with {done.returncode}:\n{told}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(found: Any) -> str:
    """What a token takes, and the memory, by the number of texts."""
    rows: dict[int, dict[str, Any]] = {}
    for work, figures in found["observed"].items():
        for count, micro in figures.get("CPU microseconds per token", {}).items():
            row = rows.setdefault(int(count), {"texts": f"{int(count):,}"})
            row[f"{work}, CPU µs per token"] = f"{micro:.1f}"
            row[f"{work}, MiB"] = f"{figures['memory'][count] / 2**20:,.0f}"
    return markdown(list(rows.values()))
