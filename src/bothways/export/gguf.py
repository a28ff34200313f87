"""The encoder as one GGUF file for llama.cpp: f16, f32 or q8_0, tokenizer and both keys included.

In llama.cpp two keys of the file decide what a vector is: whether attention is causal, and how token vectors are
pooled. Without the first it silently computes a causal model, without the second it depends on who starts it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bothways.errors import ConfigError, VerificationError, did_you_mean
from bothways.export import gguf_file, gguf_tokens
from bothways.export.cases import TEXTS
from bothways.export.engines.gguf import GgufEngine, interpreter
from bothways.export.gguf_file import FORMATS, GgufFile, ReadBack
from bothways.export.gguf_model import Family, Placed, family_of, places, rope_factors, write_keys

if TYPE_CHECKING:
    from bothways.encoder import Encoder
    from bothways.export.gguf_tokens import Vocabulary

BLOCK = 32
"""Numbers that q8_0 scales together; a row must be a multiple of it."""

ROUNDING = {"f32": 2.0**-23, "f16": 2.0**-11, "q8_0": 1 / 254 + 2.0**-11}
"""By how much numbers may be rounded, beside the largest of their tensor. In q8_0 it is half a step of 1/127 of the
largest of a block, and the float16 that the block's scale is."""


def write(encoder: Encoder, folder: Path, out: Path, *, number_format: str | None = None) -> GgufEngine | ReadBack:
    """Writes the file `out` and opens it: in llama.cpp where there is one, else read back without it.

    `number_format`: f16 (the default), f32 or q8_0. Raises ConfigError for an encoder that llama.cpp cannot compute as
    it is, and VerificationError if the written file is not it.
    """
    try:
        import gguf
    except ImportError as error:
        raise ConfigError(gguf_file.NEEDED) from error
    wanted = number_format or "f16"
    if wanted not in FORMATS:
        raise ConfigError(f'gguf: number_format="{wanted}" is not known. {did_you_mean(wanted, FORMATS)}')
    family = family_of(encoder)
    _check_pooling(encoder)
    vocabulary = gguf_tokens.vocabulary(encoder.tokenizer, _rows(encoder))
    architecture = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}[family.architecture]
    placed = places(encoder, family, gguf.get_tensor_name_map(architecture, encoder.model.config.num_hidden_layers))
    _write(encoder, family, vocabulary, placed, out, wanted)
    file = GgufFile(out)
    compare_tensors(file, encoder, placed)
    file.require(encoder.settings)
    if interpreter() is None:
        return ReadBack(file, encoder, placed)
    engine = GgufEngine(out)
    try:
        _compare_tokens(engine, encoder)
    except BaseException:
        engine.close()
        raise
    return engine


def _check_pooling(encoder: Encoder) -> None:
    settings = encoder.settings
    if settings.pooling not in gguf_file.POOLINGS:
        raise ConfigError(
            f'gguf: llama.cpp has no pooling="{settings.pooling}", only {", ".join(gguf_file.POOLINGS)}. Train an '
            "encoder with one of them, or use `bothways serve`."
        )
    if settings.pool_over == "text" and settings.pooling != "last":
        raise ConfigError(
            'gguf: llama.cpp pools over all tokens, this encoder over those of the text alone (pool_over="text"): '
            'without the prompt and the first special token. Use an encoder with pool_over="all", or `bothways serve`.'
        )


def _rows(encoder: Encoder) -> int:
    embedding: Any = encoder.model.get_input_embeddings()
    return int(embedding.weight.shape[0])


def _write(
    encoder: Encoder, family: Family, vocabulary: Vocabulary, placed: list[Placed], out: Path, number_format: str
) -> None:
    from gguf import GGUFWriter, LlamaFileType, PoolingType

    settings = encoder.settings
    # By way of a temporary file: the tensors need not all be in memory a second time.
    writer = GGUFWriter(out, family.architecture, use_temp_file=True)
    writer.add_type("model")
    writer.add_name(encoder.record.described)
    writer.add_file_type(
        {"f32": LlamaFileType.ALL_F32, "f16": LlamaFileType.MOSTLY_F16, "q8_0": LlamaFileType.MOSTLY_Q8_0}[
            number_format
        ]
    )
    write_keys(writer, encoder, family)
    writer.add_causal_attention(settings.direction == "causal")
    writer.add_pooling_type(PoolingType(gguf_file.POOLINGS[settings.pooling]))
    writer.add_uint32(gguf_file.MAX_LENGTH, settings.max_length)
    writer.add_bool(gguf_file.NORMALIZE, settings.normalize)
    vocabulary.write(writer)
    state = encoder.model.state_dict()
    for place in placed:
        _add(writer, place.name, place.to_file(_numbers(state[place.own])), number_format)
    factors = rope_factors(encoder.model)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors)
    if family.architecture == "olmo2":
        # llama.cpp insists on a head of its own there, which no vector meets.
        embeddings = _numbers(state["embed_tokens.weight"])
        _add(writer, "output.weight", np.zeros_like(embeddings), "q8_0")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _numbers(tensor: torch.Tensor) -> np.ndarray:
    found: np.ndarray = tensor.detach().float().cpu().numpy()
    return found


def kind_of_tensor(shape: tuple[int, ...], number_format: str) -> str:
    """Number format of a tensor: norms and biases are float32, and rows that no block divides are float16."""
    if len(shape) < 2:
        return "f32"
    return "f16" if number_format == "q8_0" and shape[-1] % BLOCK else number_format


def _add(writer: Any, name: str, values: np.ndarray, number_format: str) -> None:
    from gguf import GGMLQuantizationType, quantize

    kind = GGMLQuantizationType[kind_of_tensor(values.shape, number_format).upper()]
    values = np.ascontiguousarray(values)
    with np.errstate(over="ignore"):
        data = quantize(values, kind)
    if kind is GGMLQuantizationType.F16 and not np.isfinite(data).all():
        raise ConfigError(f"gguf: {name} has numbers up to {np.abs(values).max():.3g}, beyond float16. Ask for f32.")
    writer.add_tensor(name, data, raw_dtype=kind)


def compare_tensors(file: GgufFile, encoder: Encoder, placed: list[Placed]) -> None:
    """Raises VerificationError if a tensor of the file is not the encoder's, to the exactness of its number format."""
    state = encoder.model.state_dict()
    names = set(file.tensors)
    for place in placed:
        if place.name not in names:
            raise VerificationError(f"{file.path} has no tensor {place.name}, which {place.own} should be.")
        own, found = _numbers(state[place.own]), place.from_file(file.tensor(place.name))
        if found.shape != own.shape:
            raise VerificationError(f"{file.path}: {place.name} has the shape {found.shape}, expected {own.shape}.")
        apart = float(np.abs(found - own).max())
        allowed = (float(np.abs(own).max()) + place.plus_one) * ROUNDING.get(file.kind(place.name), 0.0)
        if not apart <= allowed:
            raise VerificationError(
                f"{file.path}: {place.name} differs from {place.own} by up to {apart:.2e}, where {allowed:.2e} is "
                "what its number format allows."
            )


def _compare_tokens(engine: GgufEngine, encoder: Encoder) -> None:
    texts = [*TEXTS, *(prompt + TEXTS[0] for prompt in encoder.settings.prompts.values())]
    for text, found in zip(texts, engine.token_ids(texts), strict=True):
        own = list(encoder.tokenizer(text).input_ids)
        if found != own:
            at = next((at for at, pair in enumerate(zip(own, found, strict=False)) if pair[0] != pair[1]), len(own))
            raise VerificationError(
                f"gguf: llama.cpp cuts {text!r} into other tokens from number {at} on: {found[at : at + 8]}, the "
                f"encoder's are {own[at : at + 8]}. {gguf_tokens.WAY_OUT}"
            )
