"""Decoders as llama.cpp knows them: its name of each family, the keys of its file, and where each tensor goes.

A family is here if it was compared with llama.cpp itself. What its code has fixed and a config may have otherwise is
checked, because llama.cpp does not: it would load the file and compute something else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from bothways.bidirectional.windows import windowed_layers
from bothways.encoder import Encoder
from bothways.errors import ConfigError


@dataclass(frozen=True)
class Family:
    """What llama.cpp makes of a family of decoders."""

    architecture: str
    """Its name in the file."""
    activation: str = "silu"
    permuted: bool = False
    """It rotates neighbouring numbers of a query or key, where transformers rotates the two halves."""
    plus_one: bool = False
    """transformers adds 1 to the weight of a norm when it computes, llama.cpp has that in the file."""
    biases: str = r"(?!)"
    """The biases that it reads, as a pattern of tensor names; another one would be left out."""
    own_head_size: bool = True
    """A head may be of another size than the hidden size over the number of heads."""
    scalings: tuple[str, ...] = ("default", "linear", "yarn")
    """What it knows of the ways to stretch rotary positions."""


LLAMA = ("default", "linear", "yarn", "llama3")
ANY_BIAS = r"\.(self_attn|mlp)\.\w+_proj\.bias$"
FAMILIES: Mapping[str, Family] = {
    "llama": Family("llama", permuted=True, biases=ANY_BIAS, scalings=LLAMA),
    "mistral": Family("llama", permuted=True, scalings=LLAMA),
    "qwen2": Family("qwen2", biases=r"\.self_attn\.[qkv]_proj\.bias$", own_head_size=False),
    "qwen3": Family("qwen3", biases=r"\.self_attn\.[qkv]_proj\.bias$"),
    "gemma": Family("gemma", activation="gelu_pytorch_tanh", plus_one=True, scalings=("default",)),
    "gemma3_text": Family(
        "gemma-embedding", activation="gelu_pytorch_tanh", plus_one=True, scalings=("default", "linear")
    ),
    "olmo2": Family("olmo2", own_head_size=False),
    "smollm3": Family("smollm3", permuted=True, scalings=("default", "linear", "yarn")),
    "granite": Family("granite", permuted=True, biases=ANY_BIAS, own_head_size=False),
}
"""`model_type` -> family."""


@dataclass(frozen=True)
class Placed:
    """A tensor of the encoder's model, and what becomes of it in the file."""

    own: str
    """Its name in the model."""
    name: str
    """Its name in the file."""
    heads: int | None = None
    """Rows are re-ordered within each of so many heads."""
    plus_one: bool = False

    def to_file(self, values: np.ndarray) -> np.ndarray:
        """float32 values as llama.cpp reads them."""
        if self.plus_one:
            return values + np.float32(1)
        return values if self.heads is None else _halves_to_pairs(values, self.heads)

    def from_file(self, values: np.ndarray) -> np.ndarray:
        """What `to_file` was given."""
        if self.plus_one:
            return values - np.float32(1)
        return values if self.heads is None else _pairs_to_halves(values, self.heads)


def family_of(encoder: Encoder) -> Family:
    """Raises ConfigError for an encoder that llama.cpp would compute otherwise, or not at all, saying why."""
    config: Any = encoder.model.config
    name = config.model_type
    family = FAMILIES.get(name)
    if family is None:
        known = ", ".join(FAMILIES)
        raise ConfigError(
            f"gguf: {name} is not among the families that were compared with llama.cpp: {known}. Export to onnx or "
            "sentence-transformers, or use `bothways serve`."
        )
    for reason in _differences(encoder, family):
        raise ConfigError(f"gguf: llama.cpp computes {name} otherwise than this encoder: {reason}.")
    if name == "gemma3_text" and encoder.settings.direction == "causal":
        return Family(**{**vars(family), "architecture": "gemma3"})
    return family


def _differences(encoder: Encoder, family: Family) -> Iterator[str]:
    config: Any = encoder.model.config
    activation = getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", None)
    if activation != family.activation:
        yield f"its activation is {family.activation}, here {activation}"
    if not family.own_head_size and head_size(config) * config.num_attention_heads != config.hidden_size:
        yield (
            f"a head has hidden_size / num_attention_heads = {config.hidden_size // config.num_attention_heads} "
            f"numbers there, here head_dim={head_size(config)}"
        )
    if config.model_type == "gemma3_text":
        scale = config.query_pre_attn_scalar
        if scale != head_size(config):
            yield f"it scales queries by head_dim={head_size(config)}, here query_pre_attn_scalar={scale}"
        if config.attn_logit_softcapping is not None:
            yield f"it has no attn_logit_softcapping, here {config.attn_logit_softcapping}"
    elif windows := set(windowed_layers(encoder.model).values()):
        narrowest = min(windows)
        if narrowest < encoder.settings.max_length:
            yield (
                f"it has no attention window there, here {narrowest} tokens of the {encoder.settings.max_length} that "
                'are read. Lower max_length to the window in bothways.json, or convert with windows="full"'
            )
    if config.model_type == "smollm3":
        fixed = [int((number + 1) % 4 != 0) for number in range(config.num_hidden_layers)]
        if list(config.no_rope_layers) != fixed:
            yield f"every fourth layer has no rotary positions there, here no_rope_layers={config.no_rope_layers}"
    for kind, parameters in ropes(config).items():
        allowed = ("default",) if kind == "sliding_attention" else family.scalings
        if parameters["rope_type"] not in allowed:
            yield f'it has no rope_type "{parameters["rope_type"]}" there, only {", ".join(allowed)}'
        if parameters.get("partial_rotary_factor", 1.0) != 1.0:
            yield f"it rotates whole heads, here partial_rotary_factor={parameters['partial_rotary_factor']}"


def head_size(config: Any) -> int:
    """Numbers of a query of one head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def ropes(config: Any) -> dict[str, dict[str, Any]]:
    """Rotary positions by the kind of a layer: one kind, or Gemma 3's two."""
    found: dict[str, Any] = config.rope_parameters
    return found if "full_attention" in found else {"full_attention": found}


def places(encoder: Encoder, family: Family, names: Any) -> list[Placed]:
    """Where each tensor of the model goes; `names` is the `gguf` package's map of names of the architecture.

    Raises ConfigError for a tensor that llama.cpp would leave out.
    """
    config: Any = encoder.model.config
    found = []
    for own in encoder.model.state_dict():
        stem, _, kind = own.rpartition(".")
        mapped = names.get_name(f"model.{stem}")
        known = kind == "weight" or re.search(family.biases, own)
        if mapped is None or not known:
            raise ConfigError(
                f"gguf: llama.cpp does not read {own} of {config.model_type}, and would compute without it. Export to "
                "onnx or sentence-transformers."
            )
        heads = None
        if family.permuted and (rotated := re.search(r"self_attn\.([qk])_proj\.", own)):
            heads = config.num_attention_heads if rotated[1] == "q" else config.num_key_value_heads
        found.append(Placed(own, f"{mapped}.{kind}", heads, family.plus_one and own.endswith("norm.weight")))
    return found


def write_keys(writer: Any, encoder: Encoder, family: Family) -> None:
    """All that llama.cpp has to know of the model beside its tensors."""
    from gguf import RopeScalingType

    config: Any = encoder.model.config
    size = head_size(config)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(size)
    kinds = ropes(config)
    rope = kinds["full_attention"]
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType[rope["rope_type"].upper()])
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        for key, add in {
            "attention_factor": writer.add_rope_scaling_yarn_attn_factor,
            "beta_fast": writer.add_rope_scaling_yarn_beta_fast,
            "beta_slow": writer.add_rope_scaling_yarn_beta_slow,
        }.items():
            if rope.get(key) is not None:
                add(rope[key])
    if config.model_type == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if config.model_type == "gemma3_text":
        writer.add_rope_freq_base_swa(kinds["sliding_attention"]["rope_theta"])
        writer.add_sliding_window(_window_there(encoder))
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])


def _window_there(encoder: Encoder) -> int:
    """llama.cpp's window: half of it reaches to either side in gemma-embedding, all of it back in a causal gemma3."""
    config: Any = encoder.model.config
    if encoder.settings.direction == "causal":
        return int(config.sliding_window)
    # The family's own mask keeps what is nearer than the window; the one that `is_causal` gives has the window itself.
    reach = config.sliding_window - int(encoder.settings.windows == "native")
    return int(2 * reach)


def rope_factors(model: nn.Module) -> np.ndarray | None:
    """By how much each rotary frequency is slowed down under "llama3", (head size / 2,) float32; else None."""
    config: Any = model.config
    rope = ropes(config)["full_attention"]
    if rope["rope_type"] != "llama3":
        return None
    size = head_size(config)
    plain = 1.0 / rope["rope_theta"] ** (np.arange(0, size, 2, dtype=np.float64) / size)
    rotary: Any = model.get_submodule("rotary_emb")
    found: np.ndarray = (plain / rotary.inv_freq.double().cpu().numpy()).astype(np.float32)
    return found


def _halves_to_pairs(values: np.ndarray, heads: int) -> np.ndarray:
    split = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return split.swapaxes(1, 2).reshape(values.shape)


def _pairs_to_halves(values: np.ndarray, heads: int) -> np.ndarray:
    split = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return split.swapaxes(1, 2).reshape(values.shape)
