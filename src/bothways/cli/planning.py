"""`bothways plan`: what the stages of a recipe will take, from the config of its base alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from bothways.cli import tables
from bothways.cli.options import misused, quiet, say

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from bothways.evaluation.tables import Row
    from bothways.recipe import Recipe
    from bothways.training.plan import StagePlan
    from bothways.training.target import Target


def plan(
    recipe: Positional[Path],
    gpu: str | None = None,
    count: int = 1,
    sharding: Literal["none", "fsdp"] = "none",
    json: Path | None = None,
) -> None:
    """Plan a recipe before it runs: parameters, FLOPs, memory by part, the batch that fits, time. Loads no weights.

    Args:
        recipe: YAML file with base, convert and stages; the data may be missing yet.
        gpu: A device to plan for, such as h100, h200, a100-80, l40s; the device of this machine if not given.
        count: How many of them.
        sharding: none: each holds everything; fsdp: weights, gradients and optimiser are spread over them.
        json: Also write the plan to this file.
    """
    _check(gpu, count, sharding)
    from bothways.evaluation.tables import write_json
    from bothways.recipe import Step, read
    from bothways.training.plan import as_plain
    from bothways.training.target import Target

    checked = read(recipe, files_exist=False)
    # A merge trains nothing.
    training = {number: step for number, step in enumerate(checked.steps, start=1) if isinstance(step, Step)}
    if not training:
        misused(f"plan: {recipe} has no stages to plan.")
    quiet()
    target = Target.at_hand() if gpu is None else Target.named(gpu, count=count, sharding=sharding)
    made = plans(checked, target)
    for number, one in zip(training, made, strict=True):
        tables.show(f"{number} {one.stage} on {one.devices} x {target.name}", _rows(one, target))
        for note in one.notes:
            say(f"{one.stage}: note: {note}")
        print(f"{one.stage}: {one.advice}")
    say(f"time: {target.why}; every row as long as the stage reads")
    if json is not None:
        write_json(json, {"recipe": str(recipe), "base": checked.base, "stages": [as_plain(p, target) for p in made]})


def _check(gpu: str | None, count: int, sharding: str) -> None:
    if count < 1:
        misused(f"plan: --count {count}: expected at least one device.")
    if gpu is None and count > 1:
        misused(f"plan: --count {count}: which devices? Name them with --gpu, for example --gpu h200.")
    if sharding == "fsdp" and count == 1:
        misused("plan: --sharding fsdp spreads the weights over devices. Use --count 2 or more.")


def plans(recipe: Recipe, target: Target) -> list[StagePlan]:
    """What each stage of a recipe takes on some devices, from the config of its base alone."""
    from bothways import artefact, hardware, loading
    from bothways.errors import ConfigError
    from bothways.provenance import EncoderSettings
    from bothways.recipe import Step
    from bothways.stages.convert import DEFAULT_MAX_LENGTH
    from bothways.training.plan import plan_all
    from bothways.training.skeleton import Making

    chosen = recipe.convert
    folder = loading.resolve(recipe.base, chosen.revision, only=["config.json", "*.py"])

    def config() -> PreTrainedConfig:
        return loading.load_config(folder, trust_remote_code=chosen.trust_remote_code)

    first = config()
    limit = artefact.length_limit(first, 10**9)
    if (chosen.max_length or 1) > limit:
        raise ConfigError(f"max_length={chosen.max_length}, but the model reads at most {limit} tokens.")
    encoder = EncoderSettings(
        pooling=chosen.pooling,
        normalize=chosen.normalize,
        max_length=chosen.max_length or min(DEFAULT_MAX_LENGTH, limit),
        direction=chosen.direction,
    )
    if chosen.dtype is None and first.dtype is None:
        say(f"{folder / 'config.json'} names no dtype: planned as float32")
    wish = chosen.dtype or first.dtype or "float32"
    dtype = target.dtype("auto") if wish == "auto" else hardware.choose_dtype(wish, target.device).value
    kernel = None if chosen.attn_implementation == "auto" else chosen.attn_implementation
    made = Making(dtype, chosen.head, kernel, chosen.trust_remote_code)
    steps = [(step.stage, step.settings) for step in recipe.steps if isinstance(step, Step)]
    return plan_all(steps, config, encoder, made, target)


def _rows(plan: StagePlan, target: Target) -> list[Row]:
    """What the stage takes, as the recipe has it and with the largest batch that fits."""
    sizes = plan.sizes
    rows: list[Row] = [
        _row("weights in all", f"{sizes.total:,}"),
        _row("  of the embedding", f"{sizes.embedding:,}"),
        _row("  of the head", f"{sizes.head:,}" if sizes.head else "tied, or left out"),
        _row(f"  trained ({plan.tune})", f"{sizes.trained:,}"),
        _row("computed in", f"{plan.precision}, {plan.attention} attention"),
        _row("rows of a step", f"{plan.rows:,} x {plan.row_tokens:,} tokens"),
    ]
    if plan.as_set is not None:
        fitting, fits = plan.fitting, plan.fits
        at_most = "nothing" if fitting is None else f"{fitting.tokens_per_batch:,}"
        rows.append(_row("tokens_per_batch", f"{plan.tokens_per_batch:,}", at_most))
        for name, size in plan.as_set.parts.items():
            if size or (fits is not None and fits.parts.get(name)):
                rows.append(_row(f"GiB {name}", _gib(size), None if fits is None else _gib(fits.parts[name])))
        total = None if fits is None else _gib(fits.total)
        rows.append(_row(f"GiB in all, of {_gib(target.memory)}", _gib(plan.as_set.total), total))
    if plan.flops_per_step is not None and plan.flops_per_token is not None:
        rows.append(_row("GFLOP of a token", f"{plan.flops_per_token / 1e9:,.3f}"))
        rows.append(_row("TFLOP of a step", f"{plan.flops_per_step / 1e12:,.3f}"))
    if plan.seconds_per_step is not None and plan.seconds is not None:
        rows.append(_row("seconds of a step", f"{plan.seconds_per_step:,.2f}"))
        rows.append(_row("hours of the stage", f"{plan.seconds / 3600:,.2f}"))
    return rows


def _row(name: str, value: str, fits: str | None = "") -> Row:
    return {"": name, "as set": value, "at most": "-" if fits is None else fits}


def _gib(size: float) -> str:
    return f"{size / 2**30:,.2f}"
