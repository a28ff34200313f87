"""Measure one architecture: build it tiny under each attention backend, convert it, check what came out."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from bothways.architectures.checks import check, packed_change, padding_change
from bothways.architectures.record import Answer, Architecture, Category, Checks
from bothways.bidirectional.attention import prepare
from bothways.bidirectional.certificate import Certificate
from bothways.bidirectional.conversion import make_bidirectional
from bothways.bidirectional.probe import probe
from bothways.bidirectional.twin import tiny_decoder
from bothways.errors import ConversionError

BACKENDS = ("eager", "sdpa", "flex_attention")
"""Attention backends that run on a CPU."""
CROSS_ATTENTION = ("encoder_attn", "cross_attn")
DRAFTS_FOR = "backbone_hidden_size"
"""What the config of a drafter says of the model that it drafts for."""

Convert = Callable[[PreTrainedModel], Certificate]


def entries() -> list[str]:
    """Names of all architectures in transformers' causal-LM mapping."""
    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def measure(name: str, convert: Convert = make_bidirectional) -> Architecture:
    """Everything about one entry, on one thread. What goes wrong is in the answer; nothing is raised for it."""
    begun = time.monotonic()
    with _quietly(), torch.random.fork_rng(devices=()):
        # Some models draw while they compute (Reformer's hashes): the page is the same every time.
        torch.manual_seed(0)
        found = _measured(name, convert, begun)
    return found


def _measured(name: str, convert: Convert, begun: float) -> Architecture:
    models: dict[str, PreTrainedModel] = {}
    for backend in BACKENDS:
        try:
            models[backend] = tiny_decoder(name, backend)
        except Exception as error:  # whatever a model's own code may raise
            if not models:
                return _unbuilt(name, error, time.monotonic() - begun)
    first = next(iter(models.values()))
    before = _before(first)
    answers: list[Answer] = []
    converted: dict[str, Certificate] = {}
    for backend, model in models.items():
        answer, certificate = _answer(backend, model, convert)
        answers.append(answer)
        if certificate is not None:
            converted[backend] = certificate
    backend, certificate = next(iter(converted.items()), ("", None))
    known = certificate or before
    checks = None if certificate is None else check(models[backend], certificate, convert)
    return Architecture(
        name=name,
        model_class=type(first).__name__,
        category=_category(name, first, before),
        answers=tuple(answers),
        kinds=tuple(dict.fromkeys(mixer.kind for mixer in known.modules)) if known is not None else (),
        treatments=_treatments(converted),
        checks=checks,
        baseline=_baseline(name, backend, before) if checks is not None and checks.failed else None,
        seconds=time.monotonic() - begun,
    )


def _answer(backend: str, model: PreTrainedModel, convert: Convert) -> tuple[Answer, Certificate | None]:
    try:
        certificate = convert(model)
        packed, unpacked = packed_change(model)
        return Answer(backend, padding=padding_change(model), packed=packed, unpacked=unpacked), certificate
    except ConversionError as refusal:
        return Answer(backend, refusal=str(refusal).splitlines()[0]), None
    except Exception as error:  # a defect of ours, or of what we rely on
        return Answer(backend, error=f"{type(error).__name__}: {error}".splitlines()[0]), None


def _baseline(name: str, backend: str, before: Certificate | None) -> Checks | None:
    """The checks on the model as it came."""
    if before is None:
        return None
    return check(tiny_decoder(name, backend), replace(before, attn_implementation=backend), lambda model: before)


def _before(model: PreTrainedModel) -> Certificate | None:
    """Who sees whom in the model as it came; None if that cannot be measured."""
    # Not every class takes `use_cache` in its forward pass, and a cache would remember what the probe tries.
    prepare(model.config, "causal")
    try:
        return probe(model)
    except ConversionError:
        return None


def _treatments(converted: dict[str, Certificate]) -> tuple[str, ...]:
    """What any backend needed beyond the config's flag."""
    stated = (mixer.treatment for certificate in converted.values() for mixer in certificate.modules)
    return tuple(sorted({part for treatment in stated for part in treatment.split(", ") if part}))


def _category(name: str, model: PreTrainedModel, before: Certificate | None) -> Category:
    config = CONFIG_MAPPING[name]()
    if config.is_encoder_decoder or any(_crosses(module) for module in model.modules()):
        return "encoder-decoder half"
    if before is not None and before.direction == "bidirectional":
        return "already bidirectional"
    attend = [mixer.attends for mixer in before.modules] if before is not None else []
    if attend and not all(attend):
        return "hybrid" if any(attend) else "recurrent"
    return "attention" if _only_text(config) else "multimodal text tower"


def _crosses(module: nn.Module) -> bool:
    return any(name in CROSS_ATTENTION for name, _ in module.named_children())


def _only_text(config: PreTrainedConfig) -> bool:
    return config.get_text_config() is config


def _unbuilt(name: str, error: Exception, seconds: float) -> Architecture:
    drafts = DRAFTS_FOR in getattr(CONFIG_MAPPING[name], "__dataclass_fields__", {})
    return Architecture(
        name=name,
        model_class=str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name]),
        category="drafter" if drafts else "cannot be built here",
        unbuilt=f"{type(error).__name__}: {_first_sentence(error)}",
        seconds=seconds,
    )


def _first_sentence(error: Exception) -> str:
    return " ".join(str(error).split()).split(". ")[0].removesuffix(".") + "."


@contextmanager
def _quietly() -> Iterator[None]:
    """One thread, no advice from transformers, and kernels that are not compiled.

    flex_attention is compiled at its first call, and again for each kind of mask: up to a minute each, on a CPU.
    """
    threads, verbosity, bars = torch.get_num_threads(), logging.get_verbosity(), logging.is_progress_bar_enabled()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(threads)
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
