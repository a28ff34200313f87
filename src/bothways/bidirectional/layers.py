"""Which layers of a config show every kind that it has, and what its settings become when only those are left."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

FEWEST, MOST = 2, 6
"""How many layers are kept of a config that has as many; more only if it has more kinds."""

COUNTS = (
    "num_hidden_layers",
    "num_layers",
    "n_layer",
    "n_layers",
    "num_blocks",
    "decoder_layers",
    "num_decoder_layers",
    "encoder_layers",
    "num_encoder_layers",
    "depth",
)
# Lists of the layers that have something.
MEMBERS = re.compile(r"(\w*_)?(layers|ids|idxs|indices|indexes)")
# How many layers from the first on, or up to the last, have something.
FIRST = re.compile(r"first_k_dense_replace|num_dense_layers|moe_layer_start_index|max_window_layers")
LAST = re.compile(r"num_kv_shared_layers")
LAST_ONE = "moe_layer_end_index"
OVERRIDES = "_heterogeneity_spec"
"""Where transformers keeps the settings in which single layers differ."""


@dataclass(frozen=True)
class Kept:
    """The layers that are kept, by their old numbers, and how many there were."""

    layers: tuple[int, ...]
    of: int

    def counts(self, name: str, value: Any) -> bool:
        """Whether a setting says how many layers there are."""
        return name in COUNTS and value == self.of

    def setting(self, name: str, value: Any) -> Any:
        """What a setting of the whole model becomes."""
        if self.counts(name, value):
            return len(self.layers)
        if _is_members(name, value, self.of):
            return type(value)(new for new, old in enumerate(self.layers) if old in value)
        if isinstance(value, list | tuple) and len(value) == self.of:
            return type(value)(value[layer] for layer in self.layers)
        if type(value) is not int or value < 0:
            return value
        if FIRST.fullmatch(name):
            return sum(old < value for old in self.layers)
        if LAST.fullmatch(name):
            return sum(old >= self.of - value for old in self.layers)
        return min(value, len(self.layers) - 1) if name == LAST_ONE else value


def kept_layers(config: PreTrainedConfig) -> Kept:
    """At least one layer of every kind; all of them where there are few.

    A layer's kind is what the config says of it by its number: its entry in lists of one entry for each layer, whether
    a list of layers has it, whether it is among the first or the last so many.
    """
    number = _number(config)
    if number <= MOST:
        return Kept(tuple(range(number)), number)
    kinds = [frozenset(_said_of(config, layer, number)) for layer in range(number)]
    kept: list[int] = []
    for layer, kind in enumerate(kinds):
        if not kept or kind - frozenset().union(*(kinds[other] for other in kept)):
            kept.append(layer)
    # What is left are other combinations of what is there already, and then repetitions.
    for layer, kind in enumerate(kinds):
        if len(kept) < MOST and kind not in [kinds[other] for other in kept]:
            kept.append(layer)
    kept += [layer for layer in range(number) if layer not in kept][: max(0, FEWEST - len(kept))]
    return Kept(tuple(sorted(kept)), number)


def _number(config: PreTrainedConfig) -> int:
    counted = (vars(config).get(name) for name in COUNTS)
    listed = (vars(config).get(name) for name in ("layer_types", "layers_block_type"))
    found = next((value for value in counted if type(value) is int), None)
    return next((len(value) for value in listed if isinstance(value, list)), 0) if found is None else found


def _said_of(config: PreTrainedConfig, layer: int, number: int) -> Iterator[tuple[str, str]]:
    for name, value in vars(config).items():
        if _is_members(name, value, number):
            yield name, str(layer in value)
        elif isinstance(value, list | tuple) and len(value) == number and not _is_sizes(value):
            yield name, str(value[layer])
        elif type(value) is int and FIRST.fullmatch(name):
            yield name, str(layer < value)
        elif type(value) is int and LAST.fullmatch(name):
            yield name, str(layer >= number - value)
        elif name == OVERRIDES:
            # Which settings differ; by how much they do is a matter of size.
            overrides = value.per_layer_overrides.get(layer, {})
            yield from ((key, str(None if _is_sizes([own]) else own)) for key, own in overrides.items())


def _is_members(name: str, value: Any, number: int) -> bool:
    """Whether a setting lists layers by their numbers; a 0 or 1 for each layer is no such list."""
    if (
        not isinstance(value, list | tuple)
        or not MEMBERS.fullmatch(name)
        or not all(type(item) is int for item in value)
    ):
        return False
    return list(value) == sorted(set(value)) and all(item < number for item in value)


def _is_sizes(value: list[Any] | tuple[Any, ...]) -> bool:
    return all(isinstance(item, int | float) for item in value) and not all(item in (0, 1) for item in value)
