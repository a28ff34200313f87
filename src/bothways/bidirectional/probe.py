"""Who sees whom: finds every sub-module that mixes tokens by measuring, never by name, and measures each on its own.

One bidirectional layer makes a whole model look bidirectional, so each sub-module is called again inside a clean
forward pass, with its input perturbed at one position of each row. What then moves elsewhere was seen. Afterwards the
model runs once more on other tokens with the clean outputs of the mixing sub-modules put in their place, changed at
that one position: if anything still crosses from one position to another, before, between or after them, some mixing
escaped the measurement, and the certificate says so. A sub-module without mixing parts is measured as a whole.
"""

from __future__ import annotations

import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bothways import __version__
from bothways.bidirectional.certificate import IGNORES_MASK, PADDING_TOLERANCE, Certificate, Mixer, Reach
from bothways.bidirectional.gate import half_open, share_of
from bothways.bidirectional.movement import (
    PADDING,
    POSITIONS,
    TOKENS,
    Batch,
    SoftmaxOverTokens,
    balance,
    body_of,
    by_token,
    felt_by,
    make_batch,
    moved,
    perturbed,
    reach,
    relative_change,
    run,
    states_in,
)
from bothways.bidirectional.nested import Path
from bothways.bidirectional.recurrence import runs_both_ways
from bothways.errors import ConversionError

__all__ = ["Certificate", "Mixer", "Reach", "probe"]

# These treat each position alone. Sparing them halves the probe; the last pass would catch one that did not.
POINTWISE = (nn.Linear, nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.Dropout, nn.Identity)


@dataclass
class _Findings:
    """What one batch showed: by sub-module and call, who felt a perturbation, and the clean outputs."""

    felt: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    outputs: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    inputs: dict[str, list[dict[Path, Tensor]]] = field(default_factory=lambda: defaultdict(list))
    attends: dict[str, bool] = field(default_factory=dict)
    balance: dict[str, float | None] = field(default_factory=dict)
    hidden: Tensor = field(default_factory=lambda: torch.empty(0))
    loose: str | None = None


@dataclass
class Examination:
    """What was measured of a model, unpadded and padded."""

    model: PreTrainedModel
    unpadded: _Findings
    padded: _Findings
    seconds: float
    padding_shift: float
    ignores_mask: bool
    """Whether the hidden states are the same with every token of the padded batch said to be real."""

    def certificate(self, treatments: Mapping[str, str] | None = None) -> Certificate:
        """The deepest mixing sub-modules, and those around them that hide more; `treatments` is copied into it."""
        return Certificate(
            architecture=self.model.config.model_type,
            attn_implementation=str(self.model.config._attn_implementation),
            dtype=str(self.model.dtype).removeprefix("torch."),
            tokens=TOKENS,
            modules=tuple(_telling(self._mixers(treatments or {}))),
            loose=tuple(dict.fromkeys(name for name in (self.unpadded.loose, self.padded.loose) if name is not None)),
            padding_shift=self.padding_shift,
            versions={"bothways": __version__, "transformers": transformers.__version__, "torch": torch.__version__},
            seconds=round(self.seconds, 2),
            notes=(IGNORES_MASK,) if self.ignores_mask else (),
        )

    def one_way_recurrences(self) -> list[str]:
        """The outermost sub-modules within a layer that only look back, and do not attend."""
        found = [mixer.name for mixer in self._mixers({}) if mixer.direction == "causal" and not mixer.attends]
        return [name for name in found if not any(name.startswith(f"{other}.") for other in found)]

    @property
    def hidden(self) -> Tensor:
        """Last hidden states (rows, tokens, dim) of the unpadded batch."""
        return self.unpadded.hidden

    def _mixers(self, treatments: Mapping[str, str]) -> list[Mixer]:
        return [
            Mixer(
                name=name,
                kind=type(self.model.get_submodule(name)).__name__,
                attends=self.unpadded.attends[name],
                treatment=treatments.get(name, ""),
                unpadded=_worst(felt),
                padded=_worst(self.padded.felt.get(name, [])),
                sees_padding=any(bool(felt[len(POSITIONS)].any()) for felt in self.padded.felt.get(name, [])),
                balance=self.unpadded.balance[name],
                share=share_of(self.model.get_submodule(name)),
            )
            for name, felt in self.unpadded.felt.items()
        ]


def probe(model: PreTrainedModel, treatments: Mapping[str, str] | None = None) -> Certificate:
    """Measures who sees whom in `model`, on its device, in its dtype, with its attention backend.

    Works for causal models too. `treatments` (sub-module name -> what was changed) is only copied into the result.
    The model is left as it was: training mode, random state, hooks. Costs about six forward passes of 60 tokens.
    Raises ConversionError if the model cannot be run on token ids.
    """
    return examine(model).certificate(treatments)


def examine(model: PreTrainedModel, before: float = 0.0) -> Examination:
    """`probe`, with all that it found; `before` are the seconds that earlier looks took."""
    found: list[_Findings] = []
    begun = time.perf_counter()
    # How far a direction reaches is one thing, how much its gate lets in another: the certificate has both.
    with undisturbed(model), half_open(model):
        for padding in (0, PADDING):
            try:
                batch = make_batch(model, padding)
                known = {name: found[0].attends[name] for name in found[0].felt} if found else None
                found.append(_examine(model, batch, known))
            except Exception as error:  # whatever a model's own code may raise
                raise ConversionError(
                    f"{model.config.model_type} under attn_implementation="
                    f'"{model.config._attn_implementation}" could not be probed: {type(error).__name__}: {error} '
                    f"({'padded' if padding else 'unpadded'} batch).\n  Use another attn_implementation, or report the "
                    "architecture with `bothways show --certificate`."
                ) from error
        shift = relative_change(found[0].hidden, found[1].hidden).max().item()
        ignored = not shift <= PADDING_TOLERANCE and _same_without_mask(model, batch, found[1].hidden)
    unpadded, padded = found
    return Examination(model, unpadded, padded, before + time.perf_counter() - begun, shift, ignored)


def _same_without_mask(model: PreTrainedModel, batch: Batch, hidden: Tensor) -> bool:
    return torch.equal(run(model, batch.ids, replace(batch, mask=torch.ones_like(batch.mask))), hidden)


@contextmanager
def _uncompiled(model: nn.Module) -> Iterator[None]:
    """flex_attention compiles anew for every mask it meets, half a minute each on CPU: here it runs as it is."""
    if not str(getattr(getattr(model, "config", None), "_attn_implementation", "")).endswith("flex_attention"):
        yield
        return
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
        yield


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients and no trace in the random state; training modes as they were afterwards."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        # No inference mode: its tensors would stay in the model's caches and break a later backward pass.
        with torch.no_grad(), torch.random.fork_rng(devices=()), _uncompiled(model):
            yield
    finally:
        for module, was_training in training.items():
            module.training = was_training


def _examine(model: PreTrainedModel, batch: Batch, attends: Mapping[str, bool] | None) -> _Findings:
    """Both passes over one batch. `attends` limits what is measured to those sub-modules, of which it is known.

    What looks like a feed-forward part, two thirds of a model's weights, is spared at first. Where the second pass
    finds something unexplained, it is measured too.
    """
    findings = _passes(model, batch, attends, spare=True)
    return findings if findings.loose is None else _passes(model, batch, attends, spare=False)


def _passes(model: PreTrainedModel, batch: Batch, attends: Mapping[str, bool] | None, *, spare: bool) -> _Findings:
    findings, only = _Findings(attends=dict(attends or {})), attends
    within_layers = set(_within_layers(model))
    both_ways = tuple(f"{name}." for name in runs_both_ways(model))
    busy = False

    def measure(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        nonlocal busy
        clean = by_token(output, batch)
        # What is inside a sub-module that is run in both directions looks one way, as it should.
        if busy or clean is None or name.startswith(both_ways):
            return
        findings.outputs[name].append(output)
        findings.inputs[name].append(states_in((args, kwargs), batch))
        explained = name not in within_layers and any(other.startswith(f"{name}.") for other in findings.felt)
        if explained if only is None else name not in only:
            return
        if spare and only is None and len(args) == 1 and not kwargs and _feeds_forward(module):
            return
        busy = True
        try:
            felt = felt_by(module, args, kwargs, clean, batch)
            if felt is None or not (felt.any() or hasattr(module, "is_causal") or only is not None):
                return
            if only is None and name not in findings.felt:
                findings.attends[name], findings.balance[name] = _weigh(module, args, kwargs, batch)
            findings.felt[name].append(felt)
        finally:
            busy = False

    with _hooked(model, measure):
        findings.hidden = run(model, batch.ids, batch)

    swapped = _swapped(findings)
    calls: dict[str, int] = defaultdict(int)

    def swap(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if name not in findings.outputs or any(name.startswith(f"{other}.") for other in swapped):
            return None
        clean, before = findings.outputs[name][calls[name]], findings.inputs[name][calls[name]]
        calls[name] += 1
        if name not in swapped:
            loose = _crossed(by_token(clean, batch), by_token(output, batch), batch)
        else:
            now = states_in((args, kwargs), batch)
            loose = any(_crossed(before[path], now.get(path), batch) for path in before)
        if loose and findings.loose is None:
            findings.loose = f"{name} ({type(module).__name__})" if name not in swapped else f"what is before {name}"
        # What it hands on differs where its own token does, so that mixing after it shows too.
        return perturbed(clean, batch) if name in swapped else None

    with _hooked(model, swap):
        hidden = run(model, batch.other_ids, batch)
    if findings.loose is None and _crossed(findings.hidden, hidden, batch):
        findings.loose = type(model).__name__
    findings.outputs.clear()
    findings.inputs.clear()
    return findings


def _swapped(findings: _Findings) -> list[str]:
    """The mixing sub-modules that stand for themselves: what mixes inside them is measured with them, or one-way."""
    kept = []
    for name, felt in findings.felt.items():
        parts = [other for other in findings.felt if other.startswith(f"{name}.")]
        attends = findings.attends.get(name, False) and not any(findings.attends.get(part, False) for part in parts)
        if not parts or attends or _worst(felt).direction() == "causal":
            kept.append(name)
    return [name for name in kept if not any(name.startswith(f"{other}.") for other in kept)]


def _feeds_forward(module: nn.Module) -> bool:
    leaves = [part for part in module.modules() if not any(True for _ in part.children())]
    linear = [part for part in leaves if isinstance(part, nn.Linear | Conv1D)]
    others = [part for part in leaves if part not in linear and not isinstance(part, nn.Dropout)]
    activations = not any(True for part in others for _ in part.parameters())
    return len(linear) > 1 and activations and not hasattr(module, "is_causal")


def _weigh(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], batch: Batch) -> tuple[bool, float | None]:
    """Whether a sub-module attends, and what a flat query of it takes from the past."""
    if hasattr(module, "is_causal"):
        # What compiled kernels compute cannot be watched, but what calls them says `is_causal`.
        return True, balance(module, args, kwargs, batch)
    with SoftmaxOverTokens(batch) as softmax:
        taken = balance(module, args, kwargs, batch)
    return softmax.seen, taken


def _crossed(clean: Tensor | None, changed: Tensor | None, batch: Batch) -> bool:
    return clean is not None and changed is not None and bool(moved(clean, changed, batch).any())


def _within_layers(model: nn.Module) -> Iterator[str]:
    """Names of the parts of a layer: measured even if a part of theirs mixes, as attention around a convolution may."""
    layers = [
        f"{name}.{child}."
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        for child, _ in module.named_children()
    ]
    return (name for name, _ in model.named_modules() if name.startswith(tuple(layers)))


@contextmanager
def _hooked(model: PreTrainedModel, hook: Callable[..., Any]) -> Iterator[None]:
    """`hook(name, module, args, kwargs, output)` after each sub-module that could mix tokens."""
    handles = []
    try:
        for name, module in model.named_modules():
            if name and not isinstance(module, POINTWISE) and module is not body_of(model):
                named = _with_name(hook, name)
                handles.append(module.register_forward_hook(named, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _with_name(hook: Callable[..., Any], name: str) -> Callable[..., Any]:
    return lambda module, args, kwargs, output: hook(name, module, args, kwargs, output)


def _worst(calls: list[Tensor]) -> Reach:
    """The reach of the call that sees least ahead: a sub-module may be called with several masks."""
    reaches = [reach(felt) for felt in calls] or [Reach(0, 0, True)]
    return min(reaches, key=lambda reach: (reach.direction() == "bidirectional", reach.right, reach.even))


def _telling(mixers: list[Mixer]) -> list[Mixer]:
    """The deepest mixing sub-modules, and those around them that attend themselves or hide more than these do."""
    kept = []
    for mixer in mixers:
        parts = [other for other in mixers if other.name.startswith(f"{mixer.name}.")]
        hides_more = all(part.direction == "bidirectional" for part in parts) and mixer.direction != "bidirectional"
        attends_itself = mixer.attends and not any(part.attends for part in parts)
        if not parts or hides_more or attends_itself:
            kept.append(mixer)
    return kept
