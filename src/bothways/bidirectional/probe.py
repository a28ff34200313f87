"""Who sees whom: finds every sub-module that mixes tokens by measuring, never by name, and measures each on its own.

One bidirectional layer makes a whole model look bidirectional, so each sub-module is called again inside a clean
forward pass, with its input perturbed at one position of each row. What then moves elsewhere was seen. Afterwards the
model runs once more on other tokens with the clean outputs of all measured sub-modules put in their place: if anything
still crosses from one position to another, some mixing escaped the measurement, and the certificate says so.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from bothways import __version__
from bothways.bidirectional.certificate import Certificate, Mixer, Reach
from bothways.errors import ConversionError

__all__ = ["Certificate", "Mixer", "Reach", "probe"]

# Primes that no model has as its width, so that an axis of this length is the axis of the tokens.
TOKENS = 11
PADDING = 6
POSITIONS = (0, TOKENS // 2, TOKENS - 1)
"""Row r is perturbed at POSITIONS[r]; the row after these at its padding, and the last row not at all."""
ROWS = len(POSITIONS) + 2
STRENGTH = 2.0
"""Size of a perturbation, relative to the root mean square of what is perturbed."""
DRAWS = 3
"""Perturbations tried before a position counts as unseen."""
NOISE_MARGIN = 8.0
"""A position has moved if it moved this many times as far as the row whose own input is untouched."""

# These treat each position alone. Sparing them halves the probe; the last pass would catch one that did not.
POINTWISE = (nn.Linear, nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.Dropout, nn.Identity)


@dataclass(frozen=True)
class _Batch:
    """Right-padded token ids, the same with other ids where `touched`, the attention mask and `touched` itself."""

    ids: Tensor
    other_ids: Tensor
    mask: Tensor
    touched: Tensor

    @property
    def tokens(self) -> int:
        return self.ids.shape[1]


@dataclass
class _Findings:
    """What one batch showed: by sub-module and call, who felt a perturbation, and the clean outputs."""

    felt: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    outputs: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    hidden: Tensor = field(default_factory=lambda: torch.empty(0))
    loose: str | None = None


def probe(model: PreTrainedModel, treatments: Mapping[str, str] | None = None) -> Certificate:
    """Measures who sees whom in `model`, on its device, in its dtype, with its attention backend.

    Works for causal models too. `treatments` (sub-module name -> what was changed) is only copied into the result.
    The model is left as it was: training mode, random state, hooks. Costs about six forward passes of 60 tokens.
    Raises ConversionError if the model cannot be run on token ids.
    """
    treatments = treatments or {}
    found: list[_Findings] = []
    with _undisturbed(model):
        for padding in (0, PADDING):
            batch = _batch(model, padding)
            try:
                found.append(_examine(model, batch, only=set(found[0].felt) if found else None))
            except Exception as error:  # whatever a model's own code may raise
                raise ConversionError(
                    f"{model.config.model_type} under attn_implementation="
                    f'"{model.config._attn_implementation}" could not be probed: {type(error).__name__}: {error} '
                    f"({'padded' if padding else 'unpadded'} batch).\n  Use another attn_implementation, or report the "
                    "architecture with `bothways show --certificate`."
                ) from error
    unpadded, padded = found
    mixers = [
        Mixer(
            name=name,
            kind=type(model.get_submodule(name)).__name__,
            treatment=treatments.get(name, ""),
            unpadded=_worst(unpadded.felt[name]),
            padded=_worst(padded.felt.get(name, [])),
            sees_padding=any(bool(felt[len(POSITIONS), :TOKENS].any()) for felt in padded.felt.get(name, [])),
        )
        for name in unpadded.felt
    ]
    return Certificate(
        architecture=model.config.model_type,
        attn_implementation=str(model.config._attn_implementation),
        dtype=str(model.dtype).removeprefix("torch."),
        tokens=TOKENS,
        modules=tuple(_telling(mixers)),
        loose=tuple(dict.fromkeys(name for name in (unpadded.loose, padded.loose) if name is not None)),
        padding_shift=_relative(unpadded.hidden, padded.hidden[:, :TOKENS]).max().item(),
        versions={"bothways": __version__, "transformers": transformers.__version__, "torch": torch.__version__},
    )


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        # No inference mode: its tensors would stay in the model's caches and break a later backward pass.
        with torch.no_grad(), torch.random.fork_rng(devices=()):
            yield
    finally:
        for module, was_training in training.items():
            module.training = was_training


def _batch(model: PreTrainedModel, padding: int) -> _Batch:
    """The same random texts whatever the padding, without special tokens."""
    embeddings = model.get_input_embeddings().weight
    special = _special_ids(model.config)
    plain = torch.tensor([token for token in range(embeddings.shape[0]) if token not in special])
    draws = torch.randint(len(plain), (2, ROWS, TOKENS + PADDING), generator=torch.Generator().manual_seed(0))
    # The second draw is made to differ from the first everywhere.
    ids, other = plain[draws[0]], plain[(draws[0] + 1 + draws[1] % (len(plain) - 1)) % len(plain)]
    touched = torch.zeros(ROWS, TOKENS + PADDING, dtype=torch.bool)
    touched[range(len(POSITIONS)), POSITIONS] = True
    touched[len(POSITIONS), TOKENS:] = True
    mask = (torch.arange(TOKENS + PADDING) < TOKENS).long().expand(ROWS, -1)
    length = TOKENS + padding
    parts = (ids, torch.where(touched, other, ids), mask, touched)
    return _Batch(*(part[:, :length].to(embeddings.device) for part in parts))


def _special_ids(config: PreTrainedConfig) -> set[int]:
    found: set[int] = set()
    for part in (config, config.get_text_config()):
        for key, value in vars(part).items():
            if key.endswith(("token_id", "token_ids", "token_index")):
                found.update(item for item in (value if isinstance(value, list) else [value]) if isinstance(item, int))
    return found


def _examine(model: PreTrainedModel, batch: _Batch, only: set[str] | None) -> _Findings:
    """Both passes over one batch; `only` limits the sub-modules that are measured."""
    findings = _Findings()
    within_layers = set(_within_layers(model))
    busy = False

    def measure(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        nonlocal busy
        clean = _by_token(output, batch)
        if busy or clean is None:
            return
        findings.outputs[name].append(output)
        explained = name not in within_layers and any(other.startswith(f"{name}.") for other in findings.felt)
        if explained if only is None else name not in only:
            return
        busy = True
        try:
            felt = _felt(module, args, kwargs, clean, batch)
        finally:
            busy = False
        if felt is not None and (felt.any() or hasattr(module, "is_causal") or only is not None):
            findings.felt[name].append(felt)

    with _hooked(model, measure):
        findings.hidden = _run(model, batch.ids, batch)

    mixing = [name for name in findings.felt if not any(name.startswith(f"{other}.") for other in findings.felt)]
    calls: dict[str, int] = defaultdict(int)

    def replace(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if name not in findings.outputs or any(name.startswith(f"{other}.") for other in mixing):
            return None
        clean = findings.outputs[name][calls[name]]
        calls[name] += 1
        if name in mixing:
            return clean
        if findings.loose is None and _crossed(_by_token(clean, batch), _by_token(output, batch), batch):
            findings.loose = f"{name} ({type(module).__name__})"
        return None

    with _hooked(model, replace):
        hidden = _run(model, batch.other_ids, batch)
    if findings.loose is None and _crossed(findings.hidden, hidden, batch):
        findings.loose = type(model).__name__
    return findings


def _crossed(clean: Tensor | None, changed: Tensor | None, batch: _Batch) -> bool:
    """Whether a real token moved that was not touched itself."""
    return clean is not None and changed is not None and bool(_moved(clean, changed, batch)[:, :TOKENS].any())


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
            if name and not isinstance(module, POINTWISE) and module is not _body(model):
                named = _with_name(hook, name)
                handles.append(module.register_forward_hook(named, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _with_name(hook: Callable[..., Any], name: str) -> Callable[..., Any]:
    return lambda module, args, kwargs, output: hook(name, module, args, kwargs, output)


def _body(model: PreTrainedModel) -> nn.Module:
    """The model without its head."""
    return getattr(model, "base_model", model)


def _run(model: PreTrainedModel, ids: Tensor, batch: _Batch) -> Tensor:
    """Last hidden states (rows, tokens, dim)."""
    body = _body(model)
    # A cache would remember what the second call of a sub-module was given.
    cache = {"use_cache": False} if "use_cache" in inspect.signature(body.forward).parameters else {}
    hidden = _by_token(body(input_ids=ids, attention_mask=batch.mask, **cache), batch)
    if hidden is None:
        raise TypeError(f"{type(body).__name__} returns no hidden states of shape (batch, tokens, dim)")
    return hidden


def _by_token(output: Any, batch: _Batch) -> Tensor | None:
    """The first tensor of an output with an axis for the tokens, as (rows, tokens, features)."""
    items = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else [output]
    for item in items:
        axis = _token_axis(item, batch)
        if axis is not None:
            found: Tensor = item.movedim(axis, 1).flatten(2)
            return found
    return None


def _token_axis(item: Any, batch: _Batch) -> int | None:
    if not isinstance(item, Tensor) or not item.is_floating_point() or item.ndim < 3 or item.shape[0] != ROWS:
        return None
    axes = [axis for axis in range(1, item.ndim) if item.shape[axis] == batch.tokens]
    # Two such axes make a mask or a matrix of attention weights.
    return axes[0] if len(axes) == 1 else None


def _felt(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], clean: Tensor, batch: _Batch
) -> Tensor | None:
    """(rows, tokens): which outputs move, besides the touched ones; None if there is nothing to perturb."""
    felt = torch.zeros_like(batch.touched)
    for draw in range(DRAWS):
        perturbed = _Perturbed(batch, torch.Generator().manual_seed(draw))
        changed = _by_token(module.forward(*perturbed(args), **perturbed(kwargs)), batch)
        if perturbed.count == 0 or changed is None:
            return None
        felt |= _moved(clean, changed, batch)
        if not felt.any() or _reach(felt).direction == "bidirectional":
            break
    return felt


class _Perturbed:
    """Copies arguments, with noise on the touched positions of every float tensor that has an axis for the tokens."""

    def __init__(self, batch: _Batch, generator: torch.Generator) -> None:
        self.batch, self.generator, self.count = batch, generator, 0

    def __call__(self, item: Any) -> Any:
        if type(item) in (tuple, list):
            return type(item)(self(part) for part in item)
        # A copy, because layers that share keys and values write them into a dict they are given.
        if type(item) is dict:
            return {key: self(part) for key, part in item.items()}
        axis = _token_axis(item, self.batch)
        if axis is None:
            return item
        self.count += 1
        size = item.float().square().mean().sqrt().clamp(min=1e-3)
        noise = torch.randn(item.shape, generator=self.generator).to(item.device)
        shape = [length if place in (0, axis) else 1 for place, length in enumerate(item.shape)]
        return torch.where(self.batch.touched.view(shape), item + (STRENGTH * size * noise).to(item.dtype), item)


def _moved(clean: Tensor, changed: Tensor, batch: _Batch) -> Tensor:
    """(rows, tokens): which untouched positions differ by more than chance, which the untouched last row shows."""
    change = _relative(clean, changed)
    floor = torch.finfo(clean.dtype).eps / 16
    return (change > torch.clamp(NOISE_MARGIN * change[-1].max(), min=floor)) & ~batch.touched


def _relative(clean: Tensor, changed: Tensor) -> Tensor:
    """(rows, tokens): length of the difference, relative to the clean vector's."""
    size = clean.float().norm(dim=-1)
    change = (changed.float() - clean.float()).nan_to_num().norm(dim=-1)
    return change / torch.maximum(size, 1e-3 * size.mean()).clamp(min=torch.finfo(torch.float32).tiny)


def _reach(felt: Tensor) -> Reach:
    """How far the single perturbed positions are felt among the real tokens; `felt` is (rows, tokens)."""
    pairs = {
        (position, token): bool(felt[row, token])
        for row, position in enumerate(POSITIONS)
        for token in range(TOKENS)
        if token != position
    }
    left = max((token - position for (position, token), seen in pairs.items() if seen), default=0)
    right = max((position - token for (position, token), seen in pairs.items() if seen), default=0)
    near = [seen for (position, token), seen in pairs.items() if -right <= token - position <= left]
    return Reach(max(left, 0), max(right, 0), all(near))


def _worst(calls: list[Tensor]) -> Reach:
    """The reach of the call that sees least ahead: a sub-module may be called with several masks."""
    reaches = [_reach(felt) for felt in calls] or [Reach(0, 0, True)]
    return min(reaches, key=lambda reach: (reach.direction == "bidirectional", reach.right, reach.even))


def _telling(mixers: list[Mixer]) -> list[Mixer]:
    """The deepest mixing sub-modules, and those around them that hide more than these do."""
    kept = []
    for mixer in mixers:
        parts = [other for other in mixers if other.name.startswith(f"{mixer.name}.")]
        if not parts or (mixer.direction != "bidirectional" and all(part.direction == "bidirectional" for part in parts)):
            kept.append(mixer)
    return kept
