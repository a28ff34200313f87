"""`bothways ablate`: the grid of a recipe's variants, one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, UseAppendAction

from bothways.cli import tables
from bothways.cli.options import flat, misused, quiet

Words = Annotated[tuple[tuple[str, ...], ...], UseAppendAction]
"""`--over a b` and `--over a --over b` are the same."""


def ablate(
    recipe: Positional[Path], out: Path, over: Words = (), seeds: tuple[str, ...] = (), json: Path | None = None
) -> None:
    """Vary a recipe and measure what each variant comes to.

    Stages that variants have in common are made once; what is done is skipped, what was interrupted goes on.

    Args:
        recipe: YAML file with base, convert, stages and evaluate.
        out: Folder for the encoders of all variants; the same one again goes on.
        over: What to vary: direction, pooling, pool_over, a stage (with and without it) or any setting (mntp.steps).
            Names alone, with commas between, take all sensible values; name=value,value takes those.
        seeds: Seeds, with commas between: every variant with each of them, mean and standard deviation in the table.
        json: Also write the table, and the folders and scores of every variant, to this file.
    """
    if not over:
        misused("ablate: --over is missing. Name what to vary, for example --over direction,pooling,mntp.")
    numbers = _numbers(seeds)
    from bothways.evaluation.tables import write_json
    from bothways.recipe import ablate as ablate_recipe
    from bothways.recipe import read
    from bothways.training.processes import place

    checked = read(recipe)
    quiet()
    found = ablate_recipe(checked, flat(over), out, numbers)
    if place().main:
        tables.sheet(f"{recipe.stem}: scores of its variants", found.rows())
        if json is not None:
            write_json(json, found.plain())


def _numbers(seeds: tuple[str, ...]) -> tuple[int, ...]:
    written = [item for word in seeds for item in word.split(",")]
    for item in written:
        if not item.isdigit():
            misused(f'ablate: --seeds: "{item}" is no whole number. Write them with commas between, as 0,1,2.')
    return tuple(map(int, written))
