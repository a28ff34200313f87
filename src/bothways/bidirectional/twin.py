"""A model of the same class and the same kinds of layers, but tiny and random: what can be measured without weights.

A config decides two things: what kinds of layers a model has, which is kept, and how large they are, which is not.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

from bothways.bidirectional.families import FITTED, STATED, given
from bothways.bidirectional.gate import GATED
from bothways.bidirectional.layers import OVERRIDES, kept_layers

HEADS, HEAD_DIM = 4, 16
WIDTH = HEADS * HEAD_DIM
VOCAB = 128
LENGTH = 128
"""Most positions. Longer than any text that is measured."""
EMBEDDING_STD = 1.0
GAIN = 0.8
"""Standard deviation of a re-drawn weight, times the square root of its inputs: scores spread by less than 1."""
DRAWN_STD = 0.3
"""A bare parameter is a weight if it was drawn around 0 with at most this deviation, not a decay or a table."""

Rule = Callable[[int, Mapping[str, Any]], int]


def _exactly(size: int) -> Rule:
    return lambda value, before: size


def _at_most(size: int) -> Rule:
    return lambda value, before: min(value, size)


def _groups(value: int, before: Mapping[str, Any]) -> int:
    """Key-value heads: one stays one, one for each query head stays so, anything else is in between."""
    heads = next(
        (before[name] for name in ("num_attention_heads", "n_heads", "n_head", "num_heads") if name in before), 0
    )
    return 1 if value == 1 else HEADS if value == heads else HEADS // 2


def _key_heads(value: int, before: Mapping[str, Any]) -> int:
    return HEADS if value == before.get("linear_num_value_heads", value) else HEADS // 2


# The first pattern that is the whole name of an integer decides. Exact where other sizes are products of it.
SIZES: tuple[tuple[str, Rule], ...] = (
    (r".*vocab.*", _at_most(VOCAB)),
    (
        r"max_position_embeddings|n_positions|n_ctx|context_length|max_seq\w*|max_(source|target)_positions",
        _at_most(LENGTH),
    ),
    (r"original_max_position_embeddings|model_max_length", _at_most(LENGTH)),
    (r"(\w*_)?(intermediate|inner|ffn|feed_forward)_\w*(size|dim)\w*|d_inner|n_inner|d_?ff|dim_ff", _at_most(WIDTH)),
    (r"linear_num_key_heads", _key_heads),
    (r"(\w*_)?(kv|key_value)\w*heads|kv_n_heads|num_query_groups", _groups),
    # An inner width of twice the hidden one, in heads of 16.
    (r"n_mamba_heads|mamba_n(um)?_heads", _exactly(2 * HEADS)),
    (r"mamba_d_ssm", _exactly(2 * WIDTH)),
    (r"index\w*_heads|heads_per_\w+", _at_most(2)),
    (r"(\w*_)?(n|num|encoder|decoder|attention)_(\w+_)?heads?(_per_layer)?|n_heads?", _exactly(HEADS)),
    (r"qk_head_dim|index_head_dim|indexer_head_dim", _exactly(2 * HEAD_DIM)),
    (r"(\w*_)?head_?(dim|size)|mamba_d_head|d_head|dim_head|d_kv|kv_channels", _exactly(HEAD_DIM)),
    (r"rotary_dim", _at_most(HEAD_DIM // 2)),
    (r"hidden_size|d_model|n_embd|dim_model|emb(edding)?_dim|lru_width|attention_hidden_size", _exactly(WIDTH)),
    (r"(moe_)?(num|n)_(\w+_)?experts|zero_expert_num", _at_most(4)),
    (r"num_experts_per_tok(en)?|moe_(top_?)?k|top_k_experts|num_selected_experts", _at_most(2)),
    (r"n_group|topk_group|num_expert_group", _exactly(1)),
    (r"(mamba_)?n_?groups|mamba_ngroups", _at_most(2)),
    (r"(mamba_)?(d_state|state_size)|ssm_state_size", _at_most(8)),
    (r"mamba_dt_rank|time_step_rank", _at_most(4)),
    (r"(mamba_)?chunk_size|block_size", _at_most(8)),
    (r"index_topk", _at_most(WIDTH)),
    # A row of token ids is one text only where there is one codebook.
    (r"num_codebooks", _exactly(1)),
    (r"image_size", _at_most(32)),
    (r"patch_size", _at_most(8)),
    (r"(\w*_)?num_\w*(layers|blocks|quantizers)|num_layers|num_blocks?|n_layers?|\w+coder_layers|depth", _at_most(2)),
    (r"hidden_size_\w+|\w*(size|dim|width|channels?|rank|filters)|d_\w+|dim_\w+", _at_most(WIDTH)),
)
WINDOW = (
    r"(\w*_)?(sliding|attention|local)_window(_size|_len)?|window_size|attention_chunk_size|local_attention|"
    r"(local|lsh)_attn_chunk_length"
)
OFF = r".*(dropout|pdrop|layerdrop|jitter).*"
TOKEN = r".*token_(id|ids|index)"


def shrunken(config: PreTrainedConfig, *, window: int = 4) -> PreTrainedConfig:
    """A copy with every distinct kind of layer (2 to 6 in all), few and narrow parts, and no dropout.

    Sliding windows and chunks become `window` tokens where the config has any. What says who sees whom (layer types,
    is_causal, use_bidirectional_attention, alibi) is kept. A shrunken config shrinks to itself.
    """
    small = copy.deepcopy(config)
    for part in _parts(small):
        _shrink(part, window)
    return small


def tiny_decoder(architecture: str, attn_implementation: str, *, head: bool = False, seed: int = 0) -> PreTrainedModel:
    """A random model of an entry of transformers' causal-LM mapping, float32, for evaluation; the same one every time.

    Headless, as AutoModel gives it, unless `head`; where that would be an encoder-decoder, it is the decoder's class.
    Raises whatever the architecture's own code raises when it cannot be built.
    """
    config = CONFIG_MAPPING[architecture]()
    for part in _parts(config):
        given(part, STATED)
    body = None if head or config.is_encoder_decoder else MODEL_MAPPING_NAMES.get(architecture)
    names = body or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[architecture]
    kind = getattr(transformers, names if isinstance(names, str) else names[0])
    return _built(kind, shrunken(_for_class(config, kind)), attn_implementation, seed)


def twin_of(model: PreTrainedModel, *, window: int, attn_implementation: str | None = None) -> PreTrainedModel:
    """A tiny random model of the class of `model`, with `window` tokens in its windows; None: with its backend too."""
    kernel = attn_implementation or model.config._attn_implementation
    small = shrunken(model.config, window=window)
    # It has no files, and so no gates in them.
    vars(small).pop(GATED, None)
    if "flash" not in kernel:
        return _built(type(model), small, kernel, seed=0)
    # Flash kernels run where the model is and in its half precision. That they are there, the model has shown.
    twin = _built(type(model), small, "eager", seed=0)
    twin.to(device=model.device, dtype=model.dtype)  # type: ignore[call-arg]
    for part in _parts(twin.config):
        part._attn_implementation = kernel
    return twin


@torch.no_grad()
def scatter(model: nn.Module, seed: int) -> None:
    """Draws the weights anew, so that tokens mix visibly and no attention is saturated; in place.

    At the usual deviation of 0.02 a random model hardly mixes at all. Norms, decays and tables stay as they are.
    """
    generator = torch.Generator().manual_seed(seed)
    owners = {id(parameter): module for module in model.modules() for parameter in module.parameters(recurse=False)}
    for parameter in model.parameters():
        if parameter.is_floating_point():
            _redraw(parameter, owners[id(parameter)], generator)


def _redraw(parameter: Tensor, owner: nn.Module, generator: torch.Generator) -> None:
    if parameter.ndim < 2:
        if not parameter.isfinite().all():  # memory that the model's own code never wrote
            parameter.zero_()
        return
    if isinstance(owner, nn.Embedding):
        scale = EMBEDDING_STD
    elif isinstance(owner, nn.Linear | Conv1D | nn.Conv1d | nn.Conv2d | nn.Conv3d) or _is_weight(parameter):
        scale = GAIN / _inputs(parameter, owner) ** 0.5
    else:
        return
    parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))


def _is_weight(parameter: Tensor) -> bool:
    if not parameter.isfinite().all():
        return True
    return bool(parameter.std() <= DRAWN_STD and parameter.mean().abs() <= parameter.std())


def _inputs(parameter: Tensor, owner: nn.Module) -> int:
    if isinstance(owner, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return parameter[0].numel()
    # Conv1D has its inputs first. A bare matrix, or a stack of them, may be either way round.
    return parameter.shape[-2] if isinstance(owner, Conv1D) else min(parameter.shape[-2:])


def _built(
    kind: type[PreTrainedModel], config: PreTrainedConfig, attn_implementation: str, seed: int
) -> PreTrainedModel:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model: PreTrainedModel = kind._from_config(config, attn_implementation=attn_implementation, dtype=torch.float32)
    scatter(model, seed)
    model.eval()
    return model


def _for_class(config: PreTrainedConfig, kind: type[PreTrainedModel]) -> PreTrainedConfig:
    """The config itself, or the part of it that the class is made from."""
    wanted: Any = kind.config_class
    return next((part for part in _parts(config) if isinstance(part, wanted)), config)


def _parts(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    yield config
    for part in vars(config).values():
        if isinstance(part, PreTrainedConfig):
            yield from _parts(part)


def _shrink(config: PreTrainedConfig, window: int) -> None:
    """One part, without those inside it."""
    kept = kept_layers(config)
    # Some sizes depend on others, as they were.
    before = copy.copy(vars(config))
    for name, value in before.items():
        if name.startswith("_") or kept.counts(name, value):
            vars(config)[name] = kept.setting(name, value)
        else:
            vars(config)[name] = _smaller(name, kept.setting(name, value), before, window)
    given(config, FITTED)
    if OVERRIDES in before:
        overrides = [before[OVERRIDES].per_layer_overrides.get(layer, {}) for layer in kept.layers]
        config.per_layer_config = {
            layer: {name: _smaller(name, value, before | of_layer, window) for name, value in of_layer.items()}
            for layer, of_layer in enumerate(overrides)
        }


def _smaller(name: str, value: Any, before: Mapping[str, Any], window: int) -> Any:
    """What a setting becomes; itself where nothing says otherwise."""
    if isinstance(value, dict) and name in ("rope_parameters", "rope_scaling"):
        return _rotary(value)
    if isinstance(value, list | tuple) and all(type(item) is int for item in value):
        return type(value)(_smaller(name, item, before, window) for item in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if re.fullmatch(OFF, name):
        return type(value)(0)
    if isinstance(value, float) or value <= 0:
        return value
    if re.fullmatch(TOKEN, name):
        return value if value < VOCAB else VOCAB - 1 - value % (VOCAB // 4)
    if re.fullmatch(WINDOW, name):
        return window
    rule = next((rule for pattern, rule in SIZES if re.fullmatch(pattern, name)), None)
    return value if rule is None else rule(value, before)


def _rotary(parameters: dict[str, Any]) -> dict[str, Any]:
    """Rotary positions of narrower heads: one set, or one for each kind of layer."""
    pairs = int(HEAD_DIM * (parameters.get("partial_rotary_factor") or 1)) // 2
    found: dict[str, Any] = {}
    for name, value in parameters.items():
        if isinstance(value, dict):
            found[name] = _rotary(value)
        elif name == "mrope_section" and value:
            rest = pairs // len(value)
            found[name] = [pairs - rest * (len(value) - 1), *[rest] * (len(value) - 1)]
        elif name in ("short_factor", "long_factor"):
            found[name] = value[:pairs]
        else:
            found[name] = value
    return found
