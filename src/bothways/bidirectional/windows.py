"""Sliding windows of a model that looks both ways: kept, opened, or narrowed as Gemma 3's own key does; where they end.

A window w means |i - j| <= w here, which is what transformers' masks make of a bidirectional window. Flash kernels
are handed the same number and keep |i - j| <= w - 1; under them, attention modules are told w + 1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from bothways.bidirectional.attention import NATIVE_KEY, has_native_key, text_configs_of, text_modules
from bothways.bidirectional.certificate import Mixer
from bothways.bidirectional.movement import TOKENS
from bothways.bidirectional.probe import probe
from bothways.bidirectional.twin import twin_of
from bothways.errors import ConfigError

Windows = Literal["keep", "full", "native"]
WINDOWS: tuple[Windows, ...] = ("keep", "full", "native")

NAMES = ("sliding_window", "sliding_window_size", "attention_window_size", "window_size", "local_attention")
"""What configs call the length of their window."""
OPENED = 2**20
"""Stands for no window where a config does not say how long a text may be."""
TWINS = (4, 8)
"""Windows of the twins on which an edge beyond the probe's length is measured; both within it."""


def check_windows(windows: str) -> None:
    """Nothing, or ConfigError for an unknown choice."""
    if windows not in WINDOWS:
        raise ConfigError(f'windows="{windows}" is not known. Use one of {", ".join(WINDOWS)}.')


def set_windows(model: PreTrainedModel, windows: Windows) -> None:
    """Does to the windows what `windows` says, in the configs and in the sub-modules; sound to repeat.

    Raises ConfigError for "native" where the family has no such key.
    """
    check_windows(windows)
    configs = [config for config in text_configs_of(model) if _window(config) is not None]
    if windows == "native":
        # Of a multimodal Gemma 3 the outer model makes the masks, and does not read its text model's key.
        if not has_native_key(model.config):
            raise ConfigError(
                f'windows="native": {model.config.model_type} has no key {NATIVE_KEY} of its own. '
                'Use windows="keep" or "full".'
            )
        for config in filter(has_native_key, configs):
            if not getattr(config, NATIVE_KEY):
                # What the config's constructor makes of the two when it reads them from a file.
                vars(config).update({NATIVE_KEY: True, "sliding_window": config.sliding_window // 2 + 1})
            vars(config).pop("is_causal", None)
    elif windows == "full":
        for config in configs:
            vars(config)[_window_name(config)] = getattr(config, "max_position_embeddings", None) or OPENED
    for _, module in text_modules(model):
        _tell_module(module, windows)


def measure_edges(
    model: PreTrainedModel, mixers: Sequence[Mixer], windows: Windows, convert: Callable[[PreTrainedModel], Any]
) -> tuple[tuple[Mixer, ...], str]:
    """The mixers, with the windows that end beyond the probe's length; and what could not be measured, or "".

    Two twins of the model's class, with windows of 4 and 8 tokens, show how far a window of w reaches. `convert` makes
    a twin bidirectional the way the model was.
    """
    wide = {number: width for number, width in windowed_layers(model).items() if width >= TOKENS - 1}
    if not wide or all(mixer.unpadded.left < TOKENS - 1 for mixer in mixers):
        return tuple(mixers), ""
    try:
        first, second = (_reach_of_windows(model, width, convert) for width in TWINS)
    except Exception as error:  # whatever a model's own code may raise
        return tuple(mixers), f"where windows end could not be measured on a twin ({type(error).__name__}: {error})"
    if first is None or second is None or (windows == "full" and first < TOKENS - 1):
        return tuple(mixers), "where windows end could not be measured: the layers of a twin do not agree"
    if windows == "full":
        return tuple(mixers), ""
    slope = (second - first) / (TWINS[1] - TWINS[0])

    def measured(mixer: Mixer) -> Mixer:
        number = layer_of(mixer.name)
        if number not in wide or mixer.unpadded.left < TOKENS - 1 or not mixer.attends:
            return mixer
        return replace(mixer, window=round(first + slope * (wide[number] - TWINS[0])))

    return tuple(measured(mixer) for mixer in mixers), ""


def layer_of(name: str) -> int | None:
    """The number of the layer that a sub-module's name lies in."""
    found = re.search(r"\.(\d+)\.", f".{name}.")
    return int(found[1]) if found else None


def _reach_of_windows(model: PreTrainedModel, width: int, convert: Callable[[PreTrainedModel], Any]) -> int | None:
    twin = twin_of(model, window=width)
    layers = windowed_layers(twin)
    convert(twin)
    found = {mixer.unpadded.left for mixer in probe(twin).modules if mixer.attends and layer_of(mixer.name) in layers}
    return found.pop() if len(found) == 1 else None


def windowed_layers(model: PreTrainedModel) -> Mapping[int, int]:
    """Number of each layer with a window -> the window, as the configs have it."""
    config = next((config for config in text_configs_of(model) if _window(config) is not None), None)
    if config is None:
        return {}
    width = getattr(config, _window_name(config))
    kinds = getattr(config, "layer_types", None) or getattr(config, "attention_layers", None)
    if kinds is None:
        return dict.fromkeys(range(config.num_hidden_layers), width)
    return {number: width for number, kind in enumerate(kinds) if re.search("sliding|local|swa", str(kind))}


def _window_name(config: PreTrainedConfig) -> str:
    return next(name for name in NAMES if isinstance(getattr(config, name, None), int))


def _window(config: PreTrainedConfig) -> int | None:
    found = [getattr(config, name, None) for name in NAMES]
    return next((value for value in found if isinstance(value, int) and not isinstance(value, bool)), None)


def _tell_module(module: nn.Module, windows: Windows) -> None:
    """What an attention module hands to its kernel, where it is not what the masks are made of."""
    config = getattr(module, "config", None)
    if not isinstance(config, PreTrainedConfig) or _window(config) is None:
        return
    wider = int(windows != "native" and "flash" in str(config._attn_implementation))
    if isinstance(vars(module).get("sliding_window"), int) and (windows != "keep" or wider):
        vars(module)["sliding_window"] = getattr(config, _window_name(config)) + wider
    elif wider and hasattr(module, "is_causal"):
        vars(module)["config"] = WiderConfig(config)


class WiderConfig:
    """A config in which the window is one wider; all else is the config itself."""

    def __init__(self, config: PreTrainedConfig) -> None:
        vars(self)["_config"] = config

    def __getattr__(self, name: str) -> Any:
        config = vars(self).get("_config")
        if config is None:  # being unpickled
            raise AttributeError(name)
        value = getattr(config, name)
        return value + 1 if name == "sliding_window" and isinstance(value, int) else value

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(vars(self)["_config"], name, value)
