"""What a setting must be: errors that name the class, the setting and its value."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from bothways.errors import ConfigError


def within(
    settings: object,
    name: str,
    *,
    low: float,
    high: float = math.inf,
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    """Raises ConfigError unless the setting is a number in these bounds."""
    value = getattr(settings, name)
    inside(settings, name, value, low=low, high=high, open_low=open_low, open_high=open_high)


def inside(
    settings: object, name: str, value: Any, *, low: float, high: float, open_low: bool = False, open_high: bool = False
) -> None:
    """Raises ConfigError unless `value`, of the setting `name`, is a number in these bounds."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and (low < value if open_low else low <= value) and (value < high if open_high else value <= high):
        return
    left = f"{low:g} {'<' if open_low else '<='} "
    right = "" if high == math.inf else f" {'<' if open_high else '<='} {high:g}"
    raise ConfigError(f"{type(settings).__name__}({name}={value!r}): expected {left}{name}{right}.")


def whole(settings: object, name: str, *, low: int) -> None:
    """Raises ConfigError unless the setting is a whole number from `low` on."""
    value = getattr(settings, name)
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ConfigError(f"{type(settings).__name__}({name}={value!r}): expected a whole number, {low} <= {name}.")


def one_of(settings: object, name: str, allowed: Collection[str]) -> None:
    """Raises ConfigError unless the setting is one of those allowed."""
    value = getattr(settings, name)
    if value not in allowed:
        known = ", ".join(f'"{item}"' for item in allowed)
        raise ConfigError(f"{type(settings).__name__}({name}={value!r}): expected one of {known}.")
