"""Step 1 on a loaded model: open what hides the future, run both ways what recurs, and prove it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bothways import hardware
from bothways.bidirectional import biases, masks, recurrence
from bothways.bidirectional.attention import CHUNKED, prepare, says_bidirectional, text_configs_of, treat, triangles
from bothways.bidirectional.certificate import Certificate
from bothways.bidirectional.gate import load_gates
from bothways.bidirectional.movement import make_batch, run
from bothways.bidirectional.probe import Examination, examine, probe, undisturbed
from bothways.bidirectional.twin import twin_of
from bothways.bidirectional.windows import TWINS, Windows, check_windows, layer_of, measure_edges, set_windows
from bothways.errors import ConversionError

UNEVEN = 0.01
"""How far from one half the share of the past may be, where ALiBi was mirrored."""
SELECTOR, SELECTION, CHUNKS_OPENED = "indexer", "selection opened", "chunks opened"
KEPT = ("is_causal", "sliding_window", "config", "generate", SELECTOR)
"""Attributes of sub-modules that a conversion may change."""


def make_bidirectional(
    model: PreTrainedModel, *, windows: Windows = "keep", attn_implementation: str | None = None
) -> Certificate:
    """Lets every token of a loaded `AutoModel` or `AutoModelForCausalLM` see every token, in place, and proves it.

    Attention is opened; what mixes tokens one way without attending (recurrences, convolutions) is run over the text
    in both directions. `windows`: "keep" sliding windows on both sides; "full" opens them; "native" halves them by
    Gemma 3's own key. `attn_implementation` is as in transformers (None: the model's own); "auto" takes the fastest
    that passes. Sound to call twice. A model that cannot be converted, or not be proved to be, is given back as it
    came. Convert the model with its head if it has one: then `generate()` raises.

    Raises ConversionError that names the sub-module, the backend, the batch and the way out; ConfigError for a wrong
    `windows`.
    Source: LLM2Vec (arXiv 2404.05961), sec. 2.1, for attention.
    """
    check_windows(windows)
    refuse_untreatable(model)
    if attn_implementation == "auto":
        return _fastest(model, windows)
    with _given_back_on_error(model):
        if attn_implementation is not None:
            model.set_attn_implementation(attn_implementation)
        marked = any(says_bidirectional(config) for config in text_configs_of(model))
        before = None if marked else _states(model)
        certificate, after = _convert(model, windows)
        require_even(model, certificate)
        certificate.require_bidirectional()
        mixers, unmeasured = measure_edges(model, certificate.modules, windows, partial(_convert, windows=windows))
        certificate = replace(
            certificate,
            modules=mixers,
            converted=before is None or _differ(before, after[:1]),
            notes=(*certificate.notes, *([unmeasured] if unmeasured else [])),
        )
    if hasattr(model, "generate") and certificate.converted:
        # A plain function on the instance, so that the model can still be pickled, copied and wrapped by peft.
        vars(model)["generate"] = _refuse_to_generate
    return certificate


def _fastest(model: PreTrainedModel, windows: Windows) -> Certificate:
    refusals: list[Exception] = []
    for kernel in hardware.attention_by_speed(model.device):
        try:
            return make_bidirectional(model, windows=windows, attn_implementation=kernel.value)
        except (ValueError, ImportError, ConversionError) as error:  # not there, or does not pass
            refusals.append(error)
    raise next((error for error in refusals if isinstance(error, ConversionError)), refusals[0])


def _convert(model: PreTrainedModel, windows: Windows) -> tuple[Certificate, Tensor]:
    """Everything that is done to a model; returns the certificate of what came out, good or not, and its states."""
    chunked = {
        number
        for config in text_configs_of(model)
        for number, kind in enumerate(getattr(config, "layer_types", None) or ())
        if kind == CHUNKED
    }
    set_windows(model, windows)
    for config in text_configs_of(model):
        prepare(config)
    steps = [treat(model, open_windows=windows == "full"), biases.mirror_biases(model)]
    examination = _examined(model)
    if _open_selections(model, examination):
        examination = examine(model, before=examination.seconds)
    one_way = examination.one_way_recurrences()
    if one_way:
        with undisturbed(model):
            recurrence.run_both_ways(model, one_way, make_batch(model, padding=0))
        load_gates(model)
        examination = examine(model, before=examination.seconds)
    steps.append(dict.fromkeys(_opened_selections(model), SELECTION))
    steps.append(dict.fromkeys(recurrence.runs_both_ways(model), recurrence.TREATMENT))
    attending = [mixer.name for mixer in examination.certificate().modules if mixer.attends]
    steps.append(dict.fromkeys(attending if masks.masks_are_always_made(model) else [], masks.TREATMENT))
    steps.append({name: CHUNKS_OPENED for name in attending if layer_of(name) in chunked})
    names = dict.fromkeys(name for step in steps for name in step)
    treatments = {name: ", ".join(step[name] for step in steps if name in step) for name in names}
    return examination.certificate(treatments), examination.hidden


def _open_selections(model: PreTrainedModel, examination: Examination) -> bool:
    """Where attention that first selects among earlier tokens still hides later ones, it selects no more.

    Up to as many tokens as it would select, that is what it computes anyway. The selecting part keeps its weights.
    """
    opened = False
    for mixer in examination.certificate().modules:
        module = model.get_submodule(mixer.name)
        if mixer.attends and mixer.direction != "bidirectional" and SELECTOR in dict(module.named_children()):
            # Hides the child from its module's code, and from nothing else.
            vars(module)[SELECTOR] = None
            opened = True
    return opened


def _opened_selections(model: PreTrainedModel) -> list[str]:
    return [name for name, module in model.named_modules() if SELECTOR in vars(module) and SELECTOR in module._modules]


def _examined(model: PreTrainedModel) -> Examination:
    """Where the kernels of a model fail without a mask, they get one always."""
    try:
        return examine(model)
    except ConversionError as error:
        if masks.masks_are_always_made(model) or "NoneType" not in str(error.__cause__):
            raise
        masks.always_make_masks(model)
        return examine(model)


def require_even(model: PreTrainedModel, certificate: Certificate) -> None:
    """Nothing, unless the model has ALiBi and a flat query takes more from one side than from the other.

    Raises ConversionError that names the first such sub-module.
    """
    if not biases.has_alibi(model):
        return
    for mixer in certificate.modules:
        if mixer.balance is not None and abs(mixer.balance - 0.5) > UNEVEN:
            raise ConversionError(
                f"{certificate.architecture} uses ALiBi, and a flat query of {mixer.name} ({mixer.kind}) takes "
                f"{1 - mixer.balance:.0%} of what it takes from both sides from the future: its bias was not mirrored."
                '\n  Keep it one-way with direction="causal", or report the architecture.'
            )


def plain_backend(model: PreTrainedModel, certificate: Certificate) -> str | None:
    """The attention backend under which plain transformers code, knowing the config alone, opens this model both ways.

    "sdpa", its default, if that will do, else "eager" if that will, else None: what is done to sub-modules is code's
    work. Measured on a tiny twin that is made of the model's config and nothing else.
    """
    if any(work in mixer.treatment for work in _CODE for mixer in certificate.modules):
        return None
    for backend in ("sdpa", "eager"):
        try:
            twin = twin_of(model, window=TWINS[0], attn_implementation=backend)
            if probe(twin).direction == "bidirectional":
                return backend
        except (ConversionError, ValueError, TypeError, RuntimeError, AttributeError, ImportError):
            continue  # the architecture has no such kernel, or cannot be made small
    return None


_CODE = (recurrence.TREATMENT, masks.TREATMENT, SELECTION, "mirrored")
"""Treatments that no key of a config brings about."""


def refuse_untreatable(model: PreTrainedModel) -> None:
    """Nothing, unless the model is of a kind that no measurement of its sub-modules could speak for.

    Raises ConversionError for encoder-decoders and their decoders.
    """
    name = model.config.model_type
    if model.config.is_encoder_decoder or _reads_an_encoder(model):
        raise ConversionError(
            f"{name} is an encoder-decoder, or the decoder half of one: its encoder already sees both ways.\n"
            "  Use its encoder as it is, or choose a decoder-only model."
        )


def _reads_an_encoder(model: PreTrainedModel) -> bool:
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    return "encoder_attn" in names or bool(getattr(model.config, "add_cross_attention", False))


def _refuse_to_generate(*args: Any, **kwargs: Any) -> NoReturn:
    raise ConversionError(
        "generate() writes text from left to right, but this model was made bidirectional and would write nonsense.\n"
        "  Load the decoder again, without make_bidirectional, to generate."
    )


def _differ(before: Tensor, after: Tensor) -> bool:
    """By more than the rounding, which another number of rows may change."""
    slack = 1e-4 if before.dtype == torch.float32 else 0.02
    return bool((before.float() - after.float()).norm() > slack * after.float().norm())


def _states(model: PreTrainedModel) -> Tensor | None:
    """Hidden states of the first of the probe's texts as the model computes them now; None if it cannot."""
    with undisturbed(model):
        try:
            batch = make_batch(model, padding=0)
            first = replace(batch, ids=batch.ids[:1], mask=batch.mask[:1])
            return run(model, first.ids, first)
        except Exception:  # whatever a model's own code may raise; the probe will say it
            return None


@contextmanager
def _given_back_on_error(model: PreTrainedModel) -> Iterator[None]:
    configs = [(config, dict(vars(config))) for config in text_configs_of(model)]
    kept = [(module, {name: vars(module)[name] for name in KEPT if name in vars(module)}) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for module in model.modules() for _, buffer in triangles(module)]
    own = model.config._attn_implementation
    undo = [
        undoing
        for done, undoing in (
            (bool(recurrence.runs_both_ways(model)), recurrence.run_one_way),
            (masks.masks_are_always_made(model), masks.make_masks_when_needed),
            (biases.biases_are_mirrored(model), biases.unmirror_biases),
        )
        if not done
    ]
    try:
        yield
    except BaseException:
        for undoing in undo:
            undoing(model)
        if model.config._attn_implementation != own:
            model.set_attn_implementation(own)
        for config, values in configs:
            vars(config).clear()
            vars(config).update(values)
        for module, values in kept:
            for name in KEPT:
                vars(module).pop(name, None)
            vars(module).update(values)
        for buffer, content in buffers:
            buffer.copy_(content)
        raise
