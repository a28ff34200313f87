"""LoRA adapters that others made, in peft's format: found, checked tensor by tensor, merged into a model."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from bothways import artefact, loading, provenance
from bothways.errors import DataError

CONFIG = "adapter_config.json"
WEIGHTS, PICKLED = "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
"""Before every tensor's name in peft's files; behind it stands its name in the model that was trained."""


@dataclass(frozen=True)
class Adapter:
    """A folder that holds an adapter."""

    name: str
    """As it was asked for: a folder or a hub id."""
    folder: Path
    config: Mapping[str, Any]
    """What its adapter_config.json says."""
    weights: Path

    @property
    def base(self) -> str | None:
        """The model that it says it was trained on."""
        return self.config.get("base_model_name_or_path") or None

    def fingerprint(self) -> str:
        """SHA-256 of its two files."""
        return provenance.fingerprint_files([self.folder / CONFIG, self.weights])


def place_of(folder: Path) -> Path | None:
    """Where in `folder` an adapter is: in it, or in the transformer's part of a sentence-transformers folder."""
    places = [folder]
    if (folder / "modules.json").exists():
        places.append(artefact.transformer_of(folder))
    return next((place for place in places if (place / CONFIG).exists()), None)


def read(name: str, folder: Path, revision: str | None = None) -> Adapter:
    """The adapter in a folder, called `name`. Raises DataError if there is none, or not all of it."""
    if folder.name == artefact.ADAPTER and (folder.parent / provenance.FILE).exists():
        raise DataError(
            f"{name} is the adapter of the last stage of {folder.parent}, whose weights have it already. "
            f"Open {folder.parent}."
        )
    place = place_of(folder)
    if place is None:
        whole = (folder / "config.json").exists()
        hint = "It is a whole model: pass it first, and adapters on it as adapter=." if whole else "Pass its folder."
        raise DataError(f"{name} holds no adapter: {CONFIG} is not there. {hint}")
    try:
        config = json.loads((place / CONFIG).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{place / CONFIG} line {error.lineno}: {error.msg}. Restore the file.") from error
    kind = config.get("peft_type")
    if kind != "LORA":
        raise DataError(
            f"{place / CONFIG}: peft_type {kind!r}; only LORA can be merged here. Merge it with peft first."
        )
    if not (place / WEIGHTS).exists() and not (place / PICKLED).exists() and not Path(name).is_dir():
        # Of a hub's folder, what is pickled is fetched only where it is needed.
        loading.resolve(name, revision, only=[f"*{PICKLED}"])
    for file in (WEIGHTS, PICKLED):
        if (place / file).exists():
            return Adapter(name, place, config, place / file)
    raise DataError(f"{place} has {CONFIG}, but neither {WEIGHTS} nor {PICKLED}. Pass a complete adapter.")


@contextmanager
def peft_wraps() -> Iterator[None]:
    """Within it peft may be put around a model without a warning that is nobody's fault here."""
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5.23 for a property by its old name.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        yield


@torch.no_grad()
def merge(model: PreTrainedModel, adapter: Adapter) -> None:
    """Add what an adapter makes of the weights to them, in place, in the weights' own number format, by peft.

    Names of a model with a head (`model.layers.0...`) serve its trunk (`layers.0...`) too. Raises DataError if a
    tensor of the adapter has no place or another shape in the model, or if one is missing.
    """
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

    given = _tensors(adapter)
    outer = _outer(model, given)
    tensors = {PREFIX + name.removeprefix(outer): tensor for name, tensor in given.items()}
    config = PeftConfig.from_pretrained(str(adapter.folder))
    # With a task peft asks the model for what its trunk alone cannot do.
    config.task_type, config.inference_mode = None, True
    _rename_targets(config, outer)
    try:
        with peft_wraps():
            wrapper = PeftModel(model, config)
    except ValueError as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(
            f"{adapter.name} does not fit {_named(model)}: {reason} Pass the base it was made for."
        ) from error
    try:
        places = get_peft_model_state_dict(wrapper, save_embedding_layers=False)
        _check(adapter, model, tensors, places)
        set_peft_model_state_dict(wrapper, tensors)
        wrapper.merge_and_unload()
    except BaseException:
        wrapper.unload()
        raise
    finally:
        # What peft leaves on the model; a second adapter would be warned of the first one.
        vars(model).pop("peft_config", None)


def _tensors(adapter: Adapter) -> dict[str, Tensor]:
    """The tensors of the file, by their names in the model that was trained."""
    if adapter.weights.name == WEIGHTS:
        tensors = load_file(adapter.weights)
    else:
        tensors = torch.load(adapter.weights, map_location="cpu", weights_only=True)
    return {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}


def _outer(model: nn.Module, names: Mapping[str, Tensor]) -> str:
    """What stands before the names of the model's own sub-modules in an adapter of a larger model, "model." say."""
    modules = {name for name, _ in model.named_modules()}
    for name in names:
        parts = name.split(".lora_")[0].split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in modules:
                return "".join(f"{part}." for part in parts[:start])
    return ""


def _rename_targets(config: Any, outer: str) -> None:
    """Where layers are named in full, their names in the trunk."""
    if not outer:
        return
    targets = config.target_modules
    if isinstance(targets, str):
        config.target_modules = targets.replace(outer.replace(".", r"\."), "")
    elif targets:
        config.target_modules = {target.removeprefix(outer) for target in targets}
    for pattern in ("rank_pattern", "alpha_pattern"):
        setattr(config, pattern, {key.removeprefix(outer): value for key, value in getattr(config, pattern).items()})


def _check(
    adapter: Adapter, model: PreTrainedModel, tensors: Mapping[str, Tensor], places: Mapping[str, Tensor]
) -> None:
    for name in sorted(tensors.keys() & places.keys()):
        given, wanted = tuple(tensors[name].shape), tuple(places[name].shape)
        if given != wanted:
            raise DataError(
                f"{adapter.name}: {name} has shape {given}, but {_named(model)} needs {wanted}: it was trained on "
                f"another base, it says {adapter.base}. Pass that one."
            )
    strange = sorted(tensors.keys() - places.keys())
    if strange:
        raise DataError(
            f"{adapter.name}: {len(strange)} of {len(tensors)} tensors have no place in {_named(model)}, the first is "
            f"{strange[0]}: it was trained on another base, it says {adapter.base}. Pass that one."
        )
    missing = sorted(places.keys() - tensors.keys())
    if missing:
        raise DataError(
            f"{adapter.name}: {len(missing)} of {len(places)} tensors that {CONFIG} speaks of are not in "
            f"{adapter.weights.name}, the first is {missing[0]}; peft would leave such layers as they are. "
            "Pass a complete adapter, or the base it was trained on."
        )


def _named(model: PreTrainedModel) -> str:
    config = model.config.get_text_config()
    return f"{type(model).__name__} ({config.num_hidden_layers} layers, {config.hidden_size} wide)"
