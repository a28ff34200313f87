"""What an ablation varies: `--over direction,pooling=mean,last` -> switches -> one recipe for every combination."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from bothways.errors import ConfigError, did_you_mean
from bothways.evaluation.tables import Cell
from bothways.recipe.nodes import read_value
from bothways.recipe.reader import MergeStep, Recipe, Step
from bothways.stages.convert import Convert

CONVERT = "convert"
WITH, WITHOUT = "with", "without"
SHORT = {
    "direction": ("causal", "bidirectional"),
    # The first token of a causal decoder sees nothing but itself, so that `cls` has to be asked for.
    "pooling": ("mean", "weighted_mean", "last"),
    "pool_over": ("all", "text"),
}
"""Settings of the conversion that go by their own name, and the values they take if none are given."""


@dataclass(frozen=True)
class Switch:
    """A part of a recipe that is varied."""

    name: str
    """As it was given; the head of its column."""
    values: tuple[tuple[str, Any], ...]
    """How each value is written, and the value."""
    key: str | None = None
    """The setting; None: whether the stages are there at all."""
    steps: tuple[int, ...] | None = None
    """Which of the recipe's training stages; None: the conversion."""


@dataclass(frozen=True)
class Variant:
    """A recipe with its switches set."""

    values: Mapping[str, Cell]
    """Switch -> value; None where the value says nothing, because the stage is left out."""
    recipe: Recipe

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.values.items() if value is not None)


def read_switches(words: Sequence[str], recipe: Recipe) -> tuple[Switch, ...]:
    """Switches from how they are written: `name,name` (all sensible values of each) or `name=value,value`.

    A name is `direction`, `pooling`, `pool_over`, a stage (with and without it) or `stage.setting`; a stage is one of
    the recipe's, by what it does (`mntp`) or by its folder (`1-mntp`). Raises ConfigError for what is none of these, a
    value that does not fit, and what stands twice.
    """
    switches: list[Switch] = []
    for word in words:
        name, equals, values = word.partition("=")
        names = [name] if equals else [item for item in word.split(",") if item]
        for one in names:
            if any(one == switch.name for switch in switches):
                raise ConfigError(f'--over: "{one}" stands twice. Keep one.')
            switches.append(_switch(one, values.split(",") if equals else None, recipe))
    return tuple(switches)


def variants(recipe: Recipe, switches: Sequence[Switch]) -> list[Variant]:
    """The grid: one recipe for every combination of values, the last switch varying fastest, none of them twice.

    Raises ConfigError for a combination that does not fit together.
    """
    found: dict[tuple[Cell, ...], Variant] = {}
    for values in itertools.product(*(switch.values for switch in switches)):
        one = _variant(recipe, list(zip(switches, values, strict=True)))
        found.setdefault(tuple(one.values.values()), one)
    return list(found.values())


def seeded(recipe: Recipe, seed: int) -> Recipe:
    """The recipe with this seed in every stage that has one."""
    steps = (
        replace(step, settings=replace(step.settings, seed=seed)) if isinstance(step, Step) else step
        for step in recipe.steps
    )
    return replace(recipe, steps=tuple(steps))


def _switch(name: str, given: Sequence[str] | None, recipe: Recipe) -> Switch:
    """One switch; `given` are its values as they are written, None for those that make sense."""
    if name in SHORT:
        return Switch(name, _values(name, given or SHORT[name], get_type_hints(Convert)[name]), name)
    stage, dot, key = name.partition(".")
    steps = None if stage == CONVERT and dot else _steps(name, stage, recipe)
    if not dot:
        return Switch(name, _values(name, given or (WITHOUT, WITH), Literal["with", "without"]), None, steps)
    hints = get_type_hints(Convert if steps is None else type(recipe.steps[steps[0]].settings))
    if key not in hints:
        raise ConfigError(f'--over {name}: "{key}" is no setting of {stage}. {did_you_mean(key, hints)}')
    return Switch(name, _values(name, given or _all_of(name, hints[key]), hints[key]), key, steps)


def _steps(name: str, stage: str, recipe: Recipe) -> tuple[int, ...]:
    found = tuple(
        index for index, step in enumerate(recipe.steps) if stage in (step.stage, f"{index + 1}-{step.stage}")
    )
    if not found:
        stages = list(dict.fromkeys(step.stage for step in recipe.steps))
        settings = [f"{step.stage}.{item.name}" for step in recipe.steps for item in fields(step.settings)]
        known = [*SHORT, *stages, *settings, *(f"{CONVERT}.{item.name}" for item in fields(Convert))]
        near = did_you_mean(name, known)
        if near.startswith("Known"):
            near = f"Known: {', '.join([*SHORT, *stages])}, and settings of stages, such as {(settings or known)[-1]}."
        raise ConfigError(f'--over: "{name}" is nothing that {recipe.path.name} has. {near}')
    return found


def _all_of(name: str, hint: Any) -> tuple[str, ...]:
    if hint is bool:
        return ("false", "true")
    if get_origin(hint) is Literal:
        return get_args(hint)
    raise ConfigError(f"--over {name}: which values? Write them behind it: {name}=VALUE,VALUE.")


def _values(name: str, written: Sequence[str], hint: Any) -> tuple[tuple[str, Any], ...]:
    found: list[tuple[str, Any]] = []
    for text in written:
        try:
            value = read_value(text, hint)
        except ConfigError as problem:
            raise ConfigError(
                f'--over {name}: a value is "{text}", {problem} Another switch is an argument of its own.'
            ) from None
        if any(value == other for _, other in found):
            raise ConfigError(f'--over {name}: the value "{text}" stands twice. Keep one.')
        found.append((text, value))
    return tuple(found)


def _variant(recipe: Recipe, chosen: Sequence[tuple[Switch, tuple[str, Any]]]) -> Variant:
    left_out = {
        index
        for switch, (_, value) in chosen
        if switch.key is None and value == WITHOUT
        for index in switch.steps or ()
    }
    kept = (step for index, step in enumerate(recipe.steps) if index not in left_out)
    if left_out and any(isinstance(step, MergeStep) for step in kept):
        raise ConfigError(
            f"--over: {recipe.path.name} merges stages, which cannot be left out then. Vary settings, or leave out the "
            "merge."
        )
    values: dict[str, Cell] = {}
    conversion: dict[str, Any] = {}
    settings: dict[int, dict[str, Any]] = {index: {} for index in range(len(recipe.steps)) if index not in left_out}
    for switch, (text, value) in chosen:
        if switch.key is None:
            values[switch.name] = text
            continue
        matters = switch.steps is None or not left_out.issuperset(switch.steps)
        values[switch.name] = _shown(text, value) if matters else None
        if switch.steps is None:
            conversion[switch.key] = value
        for index in set(switch.steps or ()) - left_out:
            settings[index][switch.key] = value
    # All changes at once: two of them may be right together alone.
    try:
        convert = replace(recipe.convert, **conversion)
        steps = tuple(_changed(recipe.steps[index], changes) for index, changes in settings.items())
    except ConfigError as problem:
        cell = " ".join(f"{name}={value}" for name, value in values.items() if value is not None)
        raise ConfigError(f"--over: {cell} does not fit {recipe.path.name}: {problem}") from None
    return Variant(values, replace(recipe, convert=convert, steps=steps))


def _changed(step: Step | MergeStep, changes: Mapping[str, Any]) -> Step | MergeStep:
    if isinstance(step, MergeStep):
        return replace(step, settings=replace(step.settings, **changes))
    return replace(step, settings=replace(step.settings, **changes))


def _shown(text: str, value: Any) -> Cell:
    return value if isinstance(value, int | float | str) and not isinstance(value, bool) else text


def seeds_of(switches: Sequence[Switch]) -> Iterator[str]:
    """The switches that set a seed."""
    return (switch.name for switch in switches if switch.key == "seed")
