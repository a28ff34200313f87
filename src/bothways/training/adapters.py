"""LoRA on every linear layer of the decoder layers: put on for a stage, merged at its end, kept in peft's format."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bothways.artefact import Adapter
from bothways.bidirectional.gate import GATE, has_gates
from bothways.errors import TrainingError
from bothways.training.settings import Training

MAMBA, FUSED = frozenset({"mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h"}), (".out_proj",)
"""Families whose kernels take this matrix as an argument, past any adapter on it; peft refuses to put one there."""


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The matrices inside the decoder layers, by name: found by type and place, whatever they are called.

    Left out are routers of experts: a matrix with as many outputs as there are experts; and what fused Mamba kernels
    read without calling it. Experts that are kept as one three-dimensional tensor are no linear layers and stay frozen.
    """
    fused = FUSED if model.config.model_type in MAMBA else ()
    config = model.config.get_text_config()
    counts = {getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")}
    lists = tuple(f"{name}." for name, child in model.named_modules() if isinstance(child, nn.ModuleList))
    found: dict[str, nn.Module] = {}
    for name, child in model.named_modules():
        if name.startswith(lists) and isinstance(child, (nn.Linear, Conv1D)):
            outputs = child.nf if isinstance(child, Conv1D) else child.out_features
            if outputs not in counts and not name.endswith(fused):
                found[name] = child
    return found


def attach(model: PreTrainedModel, settings: Training) -> Any:
    """Put fresh adapters on the model, in place, and freeze everything else. Returns peft's wrapper, for `merge`.

    Raises TrainingError if the model has no linear layer.
    """
    from peft import LoraConfig, get_peft_model

    layers = linear_layers(model)
    if not layers:
        raise TrainingError(
            f'tune="lora": no linear layer was found in the decoder layers of {type(model).__name__}. Use tune="full".'
        )
    names = _short_names(model, layers)
    config = LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=names,
        fan_in_fan_out=all(isinstance(layer, Conv1D) for layer in layers.values()),
        bias="none",
        # A few numbers a layer, which start small: adapters alone would leave the second direction there.
        modules_to_save=[GATE] if has_gates(model) else None,
    )
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5.23 for a property by its old name.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        wrapper = get_peft_model(model, config)
    # peft keeps a set, whose order is another in every process and would be in the file.
    config.target_modules = names
    return wrapper


def _short_names(model: nn.Module, layers: dict[str, nn.Module]) -> list[str]:
    """Last parts of the names where they single out just these layers (engines read those), else the full names."""
    short = {name.rsplit(".", 1)[-1] for name in layers}
    named = {name for name, _ in model.named_modules() if name.rsplit(".", 1)[-1] in short}
    return sorted(short if named == set(layers) else layers)


@torch.no_grad()
def merge(wrapper: Any, base: str) -> Adapter:
    """Add the adapters to the weights, in float32, and take them off the model; returns them. They sat on `base`."""
    from peft import get_peft_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer

    state = get_peft_model_state_dict(wrapper, save_embedding_layers=False)
    config = wrapper.peft_config["default"]
    config.base_model_name_or_path, config.inference_mode = base, True
    adapter = Adapter(config, {name: tensor.detach().cpu().clone() for name, tensor in state.items()})
    for layer in wrapper.modules():
        if isinstance(layer, BaseTunerLayer):
            weight = layer.get_base_layer().get_parameter("weight")
            own = weight.dtype
            weight.data = weight.data.float()
            layer.merge()
            weight.data = weight.data.to(own)
    wrapper.unload()
    return adapter
