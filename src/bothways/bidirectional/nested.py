"""What goes into a sub-module and comes out of it: nested tuples, lists and mappings, changed leaf by leaf."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from copy import copy
from typing import Any

from torch import Tensor

Path = tuple[int | str, ...]
"""Where a leaf sits."""


def tensors(item: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Every tensor in `item`, with its place."""
    if isinstance(item, Tensor):
        yield path, item
    parts = item.items() if isinstance(item, Mapping) else enumerate(item) if type(item) in (tuple, list) else ()
    for key, part in parts:
        yield from tensors(part, (*path, key))


def rebuilt(item: Any, change: Callable[[Path, Any], Any], path: Path = ()) -> Any:
    """A copy of `item` with `change(path, leaf)` in the place of every leaf; the original stays as it is."""
    if type(item) in (tuple, list):
        return type(item)(rebuilt(part, change, (*path, key)) for key, part in enumerate(item))
    if type(item) is dict:  # in words that a compiler understands
        return {key: rebuilt(part, change, (*path, key)) for key, part in item.items()}
    if isinstance(item, MutableMapping):
        # Layers that share keys and values write them into a mapping they are given.
        twin = copy(item)
        for key in item:
            twin[key] = rebuilt(item[key], change, (*path, key))
        return twin
    return change(path, item)
