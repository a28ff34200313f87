"""What `bothways plan` says of the recipe for a decoder of 0.6B: memory and time on one H200 and on eight."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.frame import ROOT, Findings
from benchmarks.peers.condition import CUDA_SHAPES
from bothways.evaluation.tables import Row, markdown

RECIPE = "recipes/modern/qwen3-0.6b-e5.yaml"
SHAPE = {**CUDA_SHAPES["qwen3-0.6b"], "tie_word_embeddings": True, "max_position_embeddings": 40_960}
"""Of Qwen/Qwen3-0.6B, written down here, so that no hub is needed."""
DTYPE = "bfloat16"
GPU, COUNTS = "h200", (1, 8)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Nothing to choose: the recipe and the devices are fixed."""


def measure(options: argparse.Namespace) -> Findings:
    """The plan of every stage on every number of devices."""
    rows = list(_planned())
    hours = {
        f"{GPU} x {count}": sum(row["seconds"] for row in rows if row["count"] == count) / 3600 for count in COUNTS
    }
    return Findings(rows, observed={"recipe": RECIPE, "base": {**SHAPE, "dtype": DTYPE}, "hours of all stages": hours})


def _planned() -> Iterator[dict[str, Any]]:
    from transformers import AutoConfig

    from bothways.cli.planning import plans
    from bothways.recipe import read
    from bothways.training.plan import as_plain
    from bothways.training.target import Target

    with tempfile.TemporaryDirectory() as folder:
        shape = {name: value for name, value in SHAPE.items() if name != "kind"}
        AutoConfig.for_model(SHAPE["kind"], **shape, dtype=DTYPE).save_pretrained(folder)
        recipe = replace(read(ROOT / RECIPE, files_exist=False), base=str(Path(folder)))
        for count in COUNTS:
            target = Target.named(GPU, count=count)
            for plan, step in zip(plans(recipe, target), recipe.steps, strict=True):
                yield {**as_plain(plan, target), "gpu": GPU, "count": count, "steps": step.settings.steps}


def table(found: Mapping[str, Any]) -> str:
    """One row for each stage on each number of devices."""
    return markdown([_row(plan) for plan in found["rows"]])


def made(found: Mapping[str, Any]) -> str:
    """How the figures came about, and what the plan remarks."""
    base, hours = found["observed"]["base"], found["observed"]["hours of all stages"]
    plans = found["rows"]
    notes = dict.fromkeys(f"{note}." for plan in plans for note in plan["notes"])
    listed = ", ".join(f"{value:.2f} hours on {name}" for name, value in hours.items())
    return (
        f"All stages: {listed}.\nTime: {plans[0]['time_by']}; every row as long as\n"
        "the stage reads, which texts seldom are; without reading data and measuring. GiB: of one device, with\n"
        "as many tokens at once as would be chosen, and then with as many as fit, or as a device has of the batch.\n"
        f"{base['num_hidden_layers']} layers, {base['hidden_size']} wide, vocabulary {base['vocab_size']:,}, "
        f"{base['dtype']}. Not measured: planned, by `{found['command']}`." + "".join(f"\n{note}" for note in notes)
    )


def _row(plan: Mapping[str, Any]) -> Row:
    as_set, fits, fitting = plan["as_set"], plan["fits"], plan["fitting"]
    return {
        "stage": plan["stage"],
        "devices": f"{plan['devices']} x {plan['gpu']}"
        + ("" if plan["devices"] == plan["count"] else f" of {plan['count']}"),
        "rows x tokens": f"{plan['rows']:,} x {plan['row_tokens']:,}",
        "weights trained": f"{plan['sizes']['trained']:,} of {plan['sizes']['total']:,}",
        "tokens at once": f"{plan['tokens_per_batch']:,}",
        "GiB": _gib(as_set["total"]),
        "at most": "-" if fitting is None else f"{fitting['tokens_per_batch']:,}",
        "GiB then": "-" if fits is None else _gib(fits["total"]),
        "TFLOP a step": f"{plan['flops_per_step'] / 1e12:,.0f}",
        "seconds a step": f"{plan['seconds_per_step']:.2f}",
        "minutes": f"{plan['seconds'] / 60:.1f}",
    }


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f}"
