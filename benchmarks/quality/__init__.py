"""How good encoders get after every stage, beside llm2vec's, sentence-transformers' on the causal model, and tf-idf."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import llm2vec_env
from benchmarks.frame import RESULTS, Findings, say

CHOICE = RESULTS / "quality-choice.json"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What is measured, on what, and how much of it."""
    parser.add_argument("--data", type=Path, required=True, help="folder of the texts, examples and tasks")
    parser.add_argument("--models", type=Path, default=None, help="folder of decoders; default: `models` beside --data")
    parser.add_argument("--decoders", nargs="+", default=None, help="embedded, babyllama-tok105; default: both")
    parser.add_argument(
        "--only", nargs="+", default=None, help="bothways, llm2vec, sentence-transformers; default: all"
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs, each of other texts and examples")
    parser.add_argument("--choose", action="store_true", help="choose settings on the dev splits, and measure no test")
    parser.add_argument("--choice", type=Path, default=CHOICE, help="results of --choose, where the settings are")
    parser.add_argument(
        "--cache", type=Path, default=Path("build/quality"), help="folder for what was computed already"
    )
    parser.add_argument(
        "--tiny", action="store_true", help="few tokens and rows: the figures mean nothing, but it runs"
    )


def measure(options: argparse.Namespace) -> Findings:
    """Every cell that the cache lacks, and what they say together; or the choice of settings."""
    from benchmarks.quality.settings import CHAINS, LLM2VEC

    sides = list(CHAINS) if options.only is None else options.only
    if unknown := [side for side in sides if side not in CHAINS]:
        raise SystemExit(f"benchmarks quality: nobody is called {unknown[0]}. Use {', '.join(CHAINS)}.")
    if LLM2VEC in sides and not llm2vec_env.BUILT.exists():
        raise SystemExit(
            "benchmarks quality: the environment of llm2vec is not there. "
            "Build it with `python -m benchmarks.llm2vec_env`, or name the others with --only."
        )
    return _choose(options, sides) if options.choose else _test(options, sides)


def _benches(options: argparse.Namespace) -> Iterator[Any]:
    import torch

    from benchmarks.quality.bench import Bench
    from benchmarks.quality.cells import Cells
    from benchmarks.quality.data import read_corpus
    from benchmarks.quality.settings import DECODERS, TINY, Size, tiny
    from bothways import hardware

    names = list(DECODERS) if options.decoders is None else options.decoders
    if unknown := [name for name in names if name not in DECODERS]:
        raise SystemExit(f"benchmarks quality: no decoder {unknown[0]}. Use {', '.join(DECODERS)}.")
    # All sides compute in the same number format when they train; vectors are float32's.
    precision = "bf16" if hardware.choose_dtype("auto", torch.device("cpu")).value == torch.bfloat16 else "fp32"
    corpus, kept = read_corpus(options.data), Cells(options.cache)
    models = options.models or options.data.parent / "models"
    for name in names:
        decoder = tiny(DECODERS[name]) if options.tiny else DECODERS[name]
        size = TINY if options.tiny else Size()
        yield Bench(decoder, size, options.data, models, corpus, kept, precision)


def _choose(options: argparse.Namespace, sides: list[str]) -> Findings:
    from benchmarks.quality.choose import choose
    from benchmarks.quality.settings import GRID

    benches = list(_benches(options))
    paces = _paces(benches, sides)
    rows, chosen = [], {}
    for bench in benches:
        mine: dict[str, Any] = {}
        for side in sides:
            mine[side], tried = choose(bench, side, _steps(side, bench, paces))
            rows += [{"decoder": bench.decoder.name, "side": side, **row} for row in tried]
        chosen[bench.decoder.name] = mine
    grid = {name: list(values) for name, values in GRID.items()}
    return Findings(rows, observed={"chosen": chosen, "grid": grid, "pace": paces})


def _paces(benches: list[Any], sides: list[str]) -> dict[str, Any]:
    """Of every decoder, before anything else: the machine has to do nothing else meanwhile, and may afterwards."""
    from benchmarks.quality.pace import pace
    from benchmarks.quality.settings import ST

    if ST not in sides:
        return {}
    found = {bench.decoder.name: pace(bench) for bench in benches}
    say("what depends on the load of the machine is measured")
    return found


def _steps(side: str, bench: Any, paces: dict[str, Any]) -> dict[str, int] | None:
    from benchmarks.quality.pace import steps
    from benchmarks.quality.settings import ST

    return steps(paces[bench.decoder.name]) if side == ST else None


def _test(options: argparse.Namespace, sides: list[str]) -> Findings:
    from benchmarks.quality.summary import summary

    choice = _chosen(options)
    begun = time.monotonic()
    rows: list[dict[str, Any]] = []
    trainings: list[dict[str, Any]] = []
    benches = list(_benches(options))
    paces = _paces(benches, sides)
    for bench in benches:
        for row, training in _cells(bench, options, sides, choice["chosen"].get(bench.decoder.name, {}), paces):
            rows += row
            trainings += training
    say(f"{len(rows)} scores in {time.monotonic() - begun:.0f} s")
    observed = {**summary(rows), "choice of settings": choice, "pace": paces, "trainings": trainings}
    return Findings(rows, observed={**observed, "seconds of this run": round(time.monotonic() - begun)})


def _cells(
    bench: Any, options: argparse.Namespace, sides: list[str], chosen: dict[str, Any], paces: dict[str, Any]
) -> Iterator[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """The rows of one line of the table after the other, and what its training took."""
    from benchmarks.quality.bench import Step, chain, main_score
    from benchmarks.quality.settings import CAUSAL, DEFAULT, OPENED, OURS, RANDOM
    from bothways.evaluation import FLOOR, TfIdf

    name = bench.decoder.name

    def rows(side: str, stage: str | None, seed: int | None, found: dict[str, float]) -> list[dict[str, Any]]:
        same = {"decoder": name, "side": side, "stage": stage, "seed": seed}
        return [{**same, "task": task, "score": score} for task, score in found.items()]

    floor = {task: main_score(TfIdf.of(given), given) for task, given in bench.tasks["test"].items()}
    yield rows(FLOOR, None, None, floor), []
    for seed in range(options.seeds):
        yield rows(RANDOM, None, seed, bench.scores(Step(RANDOM, RANDOM, seed, {}), "test")), []
    yield rows(OURS, CAUSAL, None, bench.scores(Step(OURS, CAUSAL, 0, {}), "test")), []
    for seed in range(options.seeds):
        for side in sides:
            given = _steps(side, bench, paces)
            for stage, step in chain(side, seed, chosen.get(side, DEFAULT), given).items():
                found = rows(side, stage, None if stage == OPENED else seed, bench.scores(step, "test"))
                if stage != OPENED:
                    same = {"decoder": name, "side": side, "stage": stage, "seed": seed}
                    yield found, [{**same, **bench.training(step)}]
                elif seed == 0:
                    yield found, []


def _chosen(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that were chosen, with the grid and every dev score; without them the defaults, and it says so."""
    if options.tiny or not options.choice.exists():
        say("no settings were chosen on the dev splits: the defaults are taken")
        return {"chosen": {}, "why": "nothing was chosen: defaults"}
    found = json.loads(options.choice.read_text(encoding="utf-8"))
    return {**found["observed"], "tried": found["rows"], "command": found["command"]}
