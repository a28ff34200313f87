"""A model that has every shape and no content, made of a config alone, to count on what training it would take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from bothways.bidirectional import masks
from bothways.bidirectional.attention import prepare
from bothways.bidirectional.conversion import make_bidirectional
from bothways.bidirectional.directions import Padding, Rows, TwoWay
from bothways.bidirectional.gate import GATE, Gate
from bothways.bidirectional.twin import twin_of
from bothways.bidirectional.windows import TWINS
from bothways.encoder import Encoder
from bothways.errors import ConversionError
from bothways.head import Head, head_scaling
from bothways.provenance import EncoderSettings, Record
from bothways.training import adapters, tuning
from bothways.training.precision import WorkingWeights
from bothways.training.settings import Training

CANNOT = (ConversionError, ValueError, TypeError, RuntimeError, AttributeError, ImportError)
"""What the code of a model may raise on a twin."""


@dataclass(frozen=True)
class Sizes:
    """Numbers of weights."""

    total: int
    embedding: int
    head: int
    """Of a head of its own: 0 where it is tied to the embedding, or left out."""
    trained: int


class Skeleton(Encoder):
    """An encoder on torch's meta device: no tokenizer, no content. `notes` say what could not be known."""

    def __init__(self, config: PreTrainedConfig, settings: EncoderSettings, made: Making) -> None:
        nn.Module.__init__(self)
        self.settings, self.record, self.adapter = (
            settings,
            Record(base=config.name_or_path or "", certificate=None),
            None,
        )
        prepare(config, settings.direction)
        arguments: dict[str, Any] = {"trust_remote_code": made.trust_remote_code}
        if made.attn_implementation is not None:
            arguments["attn_implementation"] = made.attn_implementation
        with torch.device("meta"):
            whole = AutoModelForCausalLM.from_config(config, dtype=made.dtype, **arguments)
        self.model = whole.base_model
        self.head = _head(whole) if made.head else None
        self.notes: tuple[str, ...] = ()
        if settings.direction == "bidirectional":
            self.notes = _as_converted(self.model)

    def states_of(self, rows: int, tokens: int) -> Tensor:
        """The last hidden states, (rows, tokens, dim), of so many rows of so many tokens, without padding."""
        ids = torch.zeros(rows, tokens, dtype=torch.long, device="meta")
        hidden: Tensor = self.model(input_ids=ids).last_hidden_state
        return hidden


@dataclass(frozen=True)
class Making:
    """How the weights would be loaded."""

    dtype: torch.dtype
    head: bool = True
    attn_implementation: str | None = None
    trust_remote_code: bool = False


def refuse_no_decoder(config: PreTrainedConfig) -> None:
    """Nothing, unless no decoder can be made of the config. Raises ConversionError."""
    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if config.is_encoder_decoder or not (remote or config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        raise ConversionError(f"{config.model_type} is no decoder-only language model. Pass a decoder-only model.")


def prepared(skeleton: Skeleton, settings: Training, dtype: torch.dtype) -> WorkingWeights:
    """Makes the skeleton ready as `tuning.tuned` does an encoder, but for good: a skeleton serves one stage."""
    tuning.choose(skeleton, settings)
    with torch.device("meta"):
        if settings.tune != "full":
            adapters.attach(skeleton.model, settings)
    weights = WorkingWeights(skeleton, dtype)
    skeleton.train()
    return weights


def sizes(skeleton: Skeleton, weights: WorkingWeights) -> Sizes:
    """How many weights there are, adapters aside, and how many are trained."""
    embedding: Any = skeleton.model.get_input_embeddings()
    own_head = skeleton.head is not None and not skeleton.head.tied
    return Sizes(
        total=sum(weight.numel() for name, weight in skeleton.named_parameters() if "lora_" not in name),
        embedding=embedding.weight.numel(),
        head=sum(weight.numel() for weight in skeleton.head.parameters()) if own_head and skeleton.head else 0,
        trained=sum(master.numel() for master in weights.masters.values()),
    )


def _head(whole: PreTrainedModel) -> Head | None:
    output: Any = whole.get_output_embeddings()
    embedding: Any = whole.get_input_embeddings()
    if output is None or whole.base_model is whole:
        return None
    scale, softcap = head_scaling(whole.config.get_text_config())
    tied = output.weight is embedding.weight
    return Head(output.weight, getattr(output, "bias", None), scale=scale, softcap=softcap, tied=tied)


def _as_converted(model: PreTrainedModel) -> tuple[str, ...]:
    """What conversion does to a model of this kind that costs memory or time, learnt from a tiny twin with content."""
    try:
        twin = twin_of(model, window=TWINS[0])
        make_bidirectional(twin)
    except CANNOT as problem:
        first = str(problem).strip().splitlines()[0]
        return (
            f"a tiny {model.config.model_type} could not be converted ({first}): convert it before you rely on this",
        )
    if masks.masks_are_always_made(twin):
        masks.always_make_masks(model)
    kinds = {
        type(module): (hook, module.get_submodule(GATE))
        for module in twin.modules()
        for hook in module._forward_hooks.values()
        if isinstance(hook, TwoWay)
    }
    if kinds:
        _run_both_ways(model, kinds, twin.config.get_text_config().hidden_size)
    return ()


def _run_both_ways(model: PreTrainedModel, kinds: Mapping[type, tuple[TwoWay, nn.Module]], twin_width: int) -> None:
    """As `recurrence.run_both_ways`, which cannot measure where there is no content: arguments are as in the twin."""
    padding = Padding()
    padding.enter(0, Rows(None))
    width = model.config.get_text_config().hidden_size
    for module in list(model.modules()):
        if type(module) in kinds:
            hook, gate = kinds[type(module)]
            channels = gate.get_parameter("logit").numel()
            with torch.device("meta"):
                own = Gate(width if channels == twin_width else channels).to(model.dtype)
            module.add_module(GATE, own)
            module.register_forward_hook(TwoWay(padding, hook.inputs, hook.outputs), with_kwargs=True, prepend=True)
