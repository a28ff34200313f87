"""What the cells say together: means, paired differences with their uncertainty, and the order of the stages."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks.quality.settings import LLM2VEC, OURS, PAPER, ST

Row = Mapping[str, Any]
"""decoder, side, stage, seed, task, score."""
DRAWS = 10_000
CONFIDENCE = 0.95
MEAN = "mean"


def means(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Decoder -> "side, stage" -> task, and their mean -> mean, and standard deviation over the seeds."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for decoder in dict.fromkeys(row["decoder"] for row in rows):
        mine = [row for row in rows if row["decoder"] == decoder]
        for name in dict.fromkeys((row["side"], row["stage"]) for row in mine):
            cell = [row for row in mine if (row["side"], row["stage"]) == name]
            by_task: dict[str, list[float]] = {}
            by_seed: dict[Any, list[float]] = {}
            for row in cell:
                by_task.setdefault(row["task"], []).append(row["score"])
                by_seed.setdefault(row["seed"], []).append(row["score"])
            by_task[MEAN] = [statistics.fmean(scores) for scores in by_seed.values()]
            found.setdefault(decoder, {})[label(*name)] = {task: _spread(scores) for task, scores in by_task.items()}
    return found


def label(side: str, stage: str | None) -> str:
    """How a line of the table is called."""
    return side if stage is None else f"{side}, {stage}"


def differences(rows: Sequence[Row], peer: str) -> dict[str, dict[str, Any]]:
    """Stage -> decoder, or all -> ours minus the peer's after the same stage, paired by task and seed."""
    stages = dict.fromkeys(row["stage"] for row in rows if row["side"] == peer)
    found = {}
    for stage in stages:
        ours, theirs = (_by_cell(rows, side, stage) for side in (OURS, peer))
        found[stage] = _per_decoder({cell: ours[cell] - theirs[cell] for cell in theirs if cell in ours})
    return found


def order(rows: Sequence[Row]) -> dict[str, Any]:
    """Whether every stage is better than the one before, on the mean: per decoder, and each step's difference."""
    found: dict[str, Any] = {"expected": list(PAPER), "steps": {}}
    stages = {stage: _by_cell(rows, OURS, stage) for stage in PAPER}
    for earlier, later in pairwise(PAPER):
        rises = {cell: value - _of(stages[earlier], cell) for cell, value in stages[later].items()}
        found["steps"][f"{earlier} -> {later}"] = _per_decoder(rises)
    for name in dict.fromkeys(row["decoder"] for row in rows):
        gains = [step[name][MEAN] for step in found["steps"].values() if name in step]
        found[name] = {"holds": len(gains) == len(PAPER) - 1 and min(gains) > 0, "gains": gains}
    return found


def bootstrap(differences: Mapping[tuple[str, str, Any], float]) -> dict[str, Any]:
    """Mean over tasks and seeds, and its 95 % interval: tasks are drawn with replacement, and seeds within each.

    Keys are decoder, task and seed.
    """
    tasks: dict[tuple[str, str], list[float]] = {}
    for (decoder, task, _), value in differences.items():
        tasks.setdefault((decoder, task), []).append(value)
    rng = np.random.default_rng(0)
    values = [np.array(group) for group in tasks.values()]
    drawn = np.zeros(DRAWS)
    for _ in values:
        chosen = rng.integers(len(values), size=DRAWS)
        for number, group in enumerate(values):
            places = np.flatnonzero(chosen == number)
            seeds = rng.integers(len(group), size=(len(places), len(group)))
            drawn[places] += group[seeds].mean(axis=1) / len(values)
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return {
        MEAN: round(float(np.mean([group.mean() for group in values])), 4),
        "interval": [round(float(low), 4), round(float(high), 4)],
        "cells": len(differences),
        "not worse": sum(value >= 0 for value in differences.values()),
    }


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """All of it."""
    return {
        "mean and standard deviation over seeds": means(rows),
        **{f"{OURS} minus {peer}": differences(rows, peer) for peer in (LLM2VEC, ST)},
        "order of the stages": order(rows),
    }


def _per_decoder(values: Mapping[tuple[str, str, Any], float]) -> dict[str, Any]:
    decoders = list(dict.fromkeys(decoder for decoder, _, _ in values))
    found = {name: bootstrap({cell: v for cell, v in values.items() if cell[0] == name}) for name in decoders}
    return found | ({"all": bootstrap(values)} if len(decoders) > 1 else {})


def _by_cell(rows: Sequence[Row], side: str, stage: str) -> dict[tuple[str, str, Any], float]:
    return {
        (row["decoder"], row["task"], row["seed"]): row["score"]
        for row in rows
        if (row["side"], row["stage"]) == (side, stage)
    }


def _of(cells: Mapping[tuple[str, str, Any], float], cell: tuple[str, str, Any]) -> float:
    """A model that nothing was taught has one cell for all seeds."""
    decoder, task, _ = cell
    return cells.get(cell, cells.get((decoder, task, None), np.nan))


def _spread(values: Sequence[float]) -> list[float]:
    spread = [statistics.stdev(values)] if len(values) > 1 else []
    return [round(value, 4) for value in (statistics.fmean(values), *spread)]
