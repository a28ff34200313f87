"""Adapters (LoRA, DoRA) on every linear layer of the decoder layers: put on for a stage, merged at its end, kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bothways.artefact import Adapter
from bothways.bidirectional.gate import GATE, has_gates
from bothways.errors import TrainingError
from bothways.lora import peft_wraps
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


def attach(model: PreTrainedModel, settings: Training, originals: Mapping[str, nn.Module] | None = None) -> Any:
    """Put fresh adapters on the model, in place, and freeze everything else. Returns peft's wrapper, for `merge`.

    `originals` are the layers, by name, in whose place others of fewer bits stand.

    Raises TrainingError if the model has no linear layer, or for DoRA one with an output that has no direction.
    Source: LoRA: Hu et al. 2021 (arXiv 2106.09685), eq. 3; DoRA: Liu et al. 2024 (arXiv 2402.09353), eq. 5.
    """
    from peft import LoraConfig, get_peft_model

    layers = linear_layers(model)
    if not layers:
        raise TrainingError(
            f'tune="{settings.tune}": no linear layer was found in the decoder layers of {type(model).__name__}. '
            'Use tune="full".'
        )
    names, dora = _short_names(model, layers), settings.tune == "dora"
    if dora:
        _check_directions(layers)
    config = LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=names,
        fan_in_fan_out=_are_conv1d(layers),
        bias="none",
        use_dora=dora,
        # A few numbers a layer, which start small: adapters alone would leave the second direction there.
        modules_to_save=[GATE] if has_gates(model) else None,
    )
    with peft_wraps():
        wrapper = get_peft_model(model, config)
    # peft keeps a set, whose order is another in every process and would be in the file.
    config.target_modules = names
    # What is kept will sit on the originals, whatever it is trained on.
    config.fan_in_fan_out = _are_conv1d(originals or layers)
    for _, layer in _adapted(wrapper):
        magnitude = _magnitude(layer)
        if magnitude is not None:
            # peft takes them in the weight's own format: in bfloat16 the model would start somewhere else.
            magnitude.data = _rows(layer.get_base_layer()).norm(dim=1)
    return wrapper


def _adapted(wrapper: Any) -> list[tuple[str, Any]]:
    """The layers with adapters on them, by name in the model."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    named = wrapper.base_model.model.named_modules()
    return [(name, layer) for name, layer in named if isinstance(layer, BaseTunerLayer)]


def _are_conv1d(layers: Mapping[str, nn.Module]) -> bool:
    return all(isinstance(layer, Conv1D) for layer in layers.values())


def _check_directions(layers: Mapping[str, nn.Module]) -> None:
    for name, layer in layers.items():
        if not bool(_rows(layer).any(dim=1).all()):
            raise TrainingError(
                f'tune="dora": {name} has an output whose weights are all 0, which has no direction to be turned. '
                'Use tune="lora".'
            )


def _rows(layer: nn.Module) -> Float[Tensor, "outputs inputs"]:
    """The weight in float32, one row an output."""
    weight = layer.get_parameter("weight").detach().float()
    return weight.T if isinstance(layer, Conv1D) else weight


def _short_names(model: nn.Module, layers: dict[str, nn.Module]) -> list[str]:
    """Last parts of the names where they single out just these layers (engines read those), else the full names."""
    short = {name.rsplit(".", 1)[-1] for name in layers}
    named = {name for name, _ in model.named_modules() if name.rsplit(".", 1)[-1] in short}
    return sorted(short if named == set(layers) else layers)


@torch.no_grad()
def merge(
    wrapper: Any, base: str, *, merge_back: float = 0.0, originals: Mapping[str, nn.Module] | None = None
) -> Adapter:
    """Add the adapters to the weights, in float32, and take them off the model; returns them. They sat on `base`.

    With `merge_back` each weight becomes the mean of what it was, with that weight, and what the adapter makes of it;
    the adapter that is returned makes just that. `originals` are the layers, by name, that stand-ins of fewer bits
    were trained in place of: they are merged into, and take their places again.
    Source: of `merge_back`: LM-Cocktail (Xiao et al. 2023, arXiv 2311.13534), with the base as the other model.
    """
    from peft import get_peft_model_state_dict

    for name, layer in _adapted(wrapper):
        if originals:
            layer.base_layer = originals[name]
        own = layer.get_base_layer()
        weight = own.get_parameter("weight")
        weight.data = weight.data.to(layer.lora_A["default"].weight.device)
        _lessen(layer, merge_back)
        merged = _merged(layer)
        weight.data = (merged.T if isinstance(own, Conv1D) else merged).to(weight.dtype).contiguous()
    state = get_peft_model_state_dict(wrapper, save_embedding_layers=False)
    config = wrapper.peft_config["default"]
    config.base_model_name_or_path, config.inference_mode = base, True
    adapter = Adapter(config, {name: tensor.detach().cpu().clone() for name, tensor in state.items()})
    wrapper.unload()
    return adapter


def _delta(layer: Any) -> Float[Tensor, "outputs inputs"]:
    a, b = (part["default"].weight.detach().float() for part in (layer.lora_A, layer.lora_B))
    delta: Tensor = layer.scaling["default"] * (b @ a)
    return delta


def _magnitude(layer: Any) -> nn.Parameter | None:
    """Of DoRA, one number an output."""
    vectors = layer.lora_magnitude_vector
    found: nn.Parameter | None = vectors["default"].weight if "default" in vectors else None
    return found


def _merged(layer: Any) -> Float[Tensor, "outputs inputs"]:
    turned, magnitude = _rows(layer.get_base_layer()) + _delta(layer), _magnitude(layer)
    return turned if magnitude is None else turned * (magnitude.float() / turned.norm(dim=1))[:, None]


def _lessen(layer: Any, merge_back: float) -> None:
    """Change the adapter so that what it makes of a weight is the mean of that and the weight itself.

    LoRA's is scaled. DoRA's `f (W + D)`, with f the magnitude over the norm of W + D, becomes `c W + d D` with
    d = (1 - merge_back) f and c = merge_back + d: `W + (d / c) D`, stretched by c.
    """
    if not merge_back:
        return
    b, magnitude = layer.lora_B["default"].weight, _magnitude(layer)
    if magnitude is None:
        b.mul_(1 - merge_back)
        return
    rows = _rows(layer.get_base_layer())
    turned = (rows + _delta(layer)).norm(dim=1)
    of_delta = (1 - merge_back) * magnitude / turned
    stretch = merge_back + of_delta
    b.mul_((of_delta / stretch)[:, None])
    magnitude.copy_(stretch * (rows + _delta(layer)).norm(dim=1))
