"""Everything in an attention-only decoder that hides the future: config flags, module flags, buffers, layer types."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from bothways.bidirectional.certificate import Certificate
from bothways.bidirectional.probe import probe
from bothways.errors import ConversionError

CHUNKED, FULL = "chunked_attention", "full_attention"

# Sub-models for other media are not ours to convert.
NOT_TEXT = re.compile("vision|audio|image|video|speech|vq", re.IGNORECASE)


def make_bidirectional(model: PreTrainedModel) -> Certificate:
    """Lets every token of a loaded `AutoModel` or `AutoModelForCausalLM` see every token, in place, and proves it.

    A model that cannot be converted, or not be proved to be, is given back as it came.
    Raises ConversionError that names the sub-module, the backend, the batch and the way out.
    """
    refuse_untreated(model)
    with _given_back_on_error(model):
        for config in _configs(model):
            prepare(config)
        certificate = probe(model, treat(model))
        certificate.require_bidirectional()
    if hasattr(model, "generate"):
        # A plain function on the instance, so that the model can still be pickled, copied and wrapped by peft.
        vars(model)["generate"] = _refuse_to_generate
    return certificate


def prepare(config: PreTrainedConfig, direction: Literal["bidirectional", "causal"] = "bidirectional") -> None:
    """Sets what the config and those of its text sub-models say of direction; before or after loading, in place.

    "causal" undoes `is_causal: false` only, because the layer types of a chunked model are gone by then.
    """
    for part in _text_configs(config):
        part.use_cache = False
        if direction == "bidirectional":
            part.is_causal = False
            if CHUNKED in (getattr(part, "layer_types", None) or ()):
                # Masks of chunked layers ignore `is_causal`.
                part.layer_types = [FULL if kind == CHUNKED else kind for kind in part.layer_types]
        elif getattr(part, "is_causal", None) is False:
            part.is_causal = True


def treat(model: nn.Module) -> dict[str, str]:
    """Changes what sub-modules themselves remember of direction; needed again after every load.

    Returns sub-module name -> what was changed. Sound to call twice.
    """
    done: dict[str, list[str]] = {}
    for name, module in _text_modules(model):
        if isinstance(getattr(module, "is_causal", None), bool):
            # stablelm and nemotron do not hand the config's flag to the kernel, which then asks the module.
            vars(module)["is_causal"] = False
            done.setdefault(name, []).append("is_causal=False")
        for key, buffer in _triangles(module):
            with torch.no_grad():
                buffer.copy_(torch.maximum(buffer, buffer.transpose(-1, -2)))
            done.setdefault(name, []).append(f"buffer {key} mirrored")
    return {name: ", ".join(changes) for name, changes in done.items()}


def plain_backend(model: PreTrainedModel, treatments: Mapping[str, str]) -> str | None:
    """The attention backend under which plain transformers code, knowing the config alone, opens this model both ways.

    "sdpa", its default, if that will do, else "eager" if that will, else None: mirrored buffers are code's work. The
    model is probed without what `treat` set on its sub-modules, and given back as it came.
    """
    if any("mirrored" in treatment for treatment in treatments.values()):
        return None
    own: str = model.config._attn_implementation
    flagged = [vars(module) for name, module in model.named_modules() if treatments.get(name)]
    for flags in flagged:
        flags["is_causal"] = True
    try:
        for backend in ("sdpa", "eager"):
            try:
                model.set_attn_implementation(backend)
            except ValueError:  # the architecture has no such kernel
                continue
            if probe(model).direction == "bidirectional":
                return backend
        return None
    finally:
        model.set_attn_implementation(own)
        for flags in flagged:
            flags["is_causal"] = False


def refuse_untreated(model: PreTrainedModel) -> None:
    """Nothing, unless the model is known to come out wrong although every token would see every token.

    Raises ConversionError for encoder-decoders and for ALiBi.
    """
    name = model.config.model_type
    if model.config.is_encoder_decoder:
        raise ConversionError(
            f"{name} is an encoder-decoder: its encoder already sees both ways.\n"
            "  Use its encoder as it is, or choose a decoder-only model."
        )
    if _has_alibi(model):
        raise ConversionError(
            f"{name} uses ALiBi, whose bias grows with the position of the key: without a causal mask nearly all "
            "attention would fall on the future.\n"
            '  ALiBi is not treated yet: choose a decoder without it, or keep this one one-way with direction="causal".'
        )


def _has_alibi(model: PreTrainedModel) -> bool:
    # bloom and mpt build the bias in a method, whatever the config says; others (falcon) ask the config.
    if any("build" in key and "alibi" in key for module in model.modules() for key in dir(type(module))):
        return True
    stated = [getattr(config, "alibi", None) for config in _configs(model)]
    if any(isinstance(value, bool) for value in stated):
        return any(value is True for value in stated)
    return any("alibi" in key for module in model.modules() for key in (*vars(module), *module._buffers))


def _refuse_to_generate(*args: Any, **kwargs: Any) -> NoReturn:
    raise ConversionError(
        "generate() writes text from left to right, but this model was made bidirectional and would write nonsense.\n"
        "  Load the decoder again, without make_bidirectional, to generate."
    )


@contextmanager
def _given_back_on_error(model: PreTrainedModel) -> Iterator[None]:
    configs = [(config, dict(vars(config))) for config in _configs(model)]
    flags = [(module, vars(module).get("is_causal")) for module in model.modules()]
    triangles = [buffer for module in model.modules() for _, buffer in _triangles(module)]
    try:
        yield
    except BaseException:
        for config, values in configs:
            vars(config).clear()
            vars(config).update(values)
        for module, flag in flags:
            vars(module).pop("is_causal", None)
            if flag is not None:
                vars(module)["is_causal"] = flag
        for buffer in triangles:
            buffer.copy_(torch.tril(buffer))
        raise


def _configs(model: nn.Module) -> list[PreTrainedConfig]:
    """Every config that a text part of the model holds: some are shared, some are copies of their own."""
    held = (getattr(module, "config", None) for _, module in _text_modules(model))
    found = (part for config in held if isinstance(config, PreTrainedConfig) for part in _text_configs(config))
    return list({id(part): part for part in found}.values())


def _text_configs(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    yield config
    for key, part in vars(config).items():
        if isinstance(part, PreTrainedConfig) and not NOT_TEXT.search(f"{key} {part.model_type}"):
            yield from _text_configs(part)


def _text_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, module) for name, module in model.named_modules() if not NOT_TEXT.search(name))


def _triangles(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Buffers that say with 0 and 1 which earlier positions may be seen; a decay of the same shape is not one."""
    for key, buffer in module.named_buffers(recurse=False):
        if buffer.ndim < 2 or buffer.shape[-1] != buffer.shape[-2] or buffer.shape[-1] < 2:
            continue
        binary = buffer.dtype == torch.bool or bool(((buffer == 0) | (buffer == 1)).all())
        if not binary or not bool(buffer.diagonal(dim1=-2, dim2=-1).all()):
            continue
        below, above = torch.tril(buffer, -1), torch.triu(buffer, 1)
        if bool(below.any()) and not bool(above.any()):
            yield key, buffer
