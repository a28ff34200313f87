"""Memory and FLOPs of one training step of a skeleton: the step itself is run, on tensors without content."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bothways.errors import BothwaysError
from bothways.pooling import pool
from bothways.training import losses
from bothways.training.dropout import dropout_of
from bothways.training.losses import info_nce, token_cross_entropy
from bothways.training.settings import MNTP, Contrastive, SimCSE, Supervised, Training
from bothways.training.skeleton import Skeleton, prepared, sizes
from bothways.training.tracking import GRADIENTS, Kernels, counted

FLOAT32 = 4
SLACK = 0.05
"""What an accelerator's allocator holds beside what comes and goes, as a share of it."""
HOLES = 0.6
"""The same on CPU, of blocks below 32 MiB. Under glibc, with a Llama of 17 million weights, the peak of resident memory
grew by 1.3 to 1.7 bytes (full) and 1.6 to 2.1 (lora) for each byte of tensors; where large blocks go back to the system
at once (MALLOC_MMAP_THRESHOLD_=65536) by 1.0, but steps are slower."""
NO_CONTENT = (RuntimeError, TypeError, ValueError, AttributeError, AssertionError, IndexError)
"""What a model's code may raise where it asks tensors for values that they do not have."""


class UncountableError(BothwaysError):
    """A step that cannot be run on tensors without content."""


@dataclass(frozen=True)
class _Way:
    """One way to cut a step."""

    rows: int
    """Of one forward pass."""
    passes: int
    """Forward passes to run: enough of them to know what one more adds."""
    kept: bool
    """All passes are kept for one backward pass; else each has its own."""
    checkpointing: bool


@dataclass(frozen=True)
class _Count:
    peak: Counter[str]
    heap: float
    """Share of the peak in blocks that leave holes in a heap."""
    forward: float
    """FLOPs of the forward passes."""
    all: float


class Footprint:
    """What a step of `rows` rows of `tokens` tokens takes on a device of this type."""

    def __init__(
        self, skeleton: Skeleton, settings: Training, dtype: torch.dtype, device: str, rows: int, tokens: int
    ) -> None:
        self.skeleton, self.settings, self.device = skeleton, settings, device
        self.rows, self.tokens = rows, tokens
        loaded = _storages(skeleton)
        self.weights = prepared(skeleton, settings, dtype)
        self.sizes = sizes(skeleton, self.weights)
        self._loaded = loaded
        self._counts: dict[_Way, _Count] = {}

    @cached_property
    def fixed(self) -> dict[str, int]:
        """Bytes that are there from the first step to the last, by part."""
        working = _storages(self.skeleton)
        masters = {master.untyped_storage()._cdata: master.untyped_storage().nbytes() for master in self._masters}
        aside = {key: size for key, size in self._loaded.items() if key not in working and key not in masters}
        return {
            "weights": sum(working.values()),
            "weights as loaded": sum(aside.values()),
            "float32 masters": sum(size for key, size in masters.items() if key not in working),
            "AdamW": 2 * FLOAT32 * self.sizes.trained,
        }

    @property
    def _masters(self) -> list[nn.Parameter]:
        return list(self.weights.masters.values())

    @cached_property
    def gathered(self) -> int:
        """Bytes of the working weights that are whole on every device while they compute: two layers, and the rest."""
        layers: Counter[str] = Counter()
        lists = [name for name, child in self.skeleton.named_modules() if isinstance(child, nn.ModuleList)]
        for name, weight in self.skeleton.named_parameters():
            inside = next((known for known in lists if name.startswith(f"{known}.")), None)
            place = "" if inside is None else f"{inside}.{name[len(inside) + 1 :].split('.')[0]}"
            layers[place] += weight.numel() * weight.element_size()
        rest = layers.pop("", 0)
        return rest + 2 * max(layers.values(), default=0)

    @property
    def can_checkpoint(self) -> bool:
        """Whether the model can compute its layers again instead of keeping them."""
        return bool(self.skeleton.model.supports_gradient_checkpointing)

    def moving(self, rows: int, cache: bool, checkpointing: bool) -> dict[str, int]:
        """Bytes that come and go, by part, at the moment when they are most. Raises UncountableError."""
        way, passes = self._way(rows, cache, checkpointing)
        count = self._count(way)
        peak = Counter(count.peak)
        if way.kept and passes > 1:
            # Each pass that is kept adds what the second one added; the last is smaller.
            one = self._count(replace(way, passes=1))
            for name in peak:
                more = max(0, count.peak[name] - one.peak[name])
                peak[name] = round(one.peak[name] + (self.rows / rows - 1) * more)
        parts = {name: peak[name] for name in (GRADIENTS, "activations", "loss", "backward")}
        holes = HOLES * count.heap if self.device == "cpu" else SLACK
        return {**parts, "allocator": round(holes * sum(parts.values()))}

    def flops_per_row(self, rows: int, cache: bool, checkpointing: bool) -> float:
        """FLOPs of one row, forward and backward. Raises UncountableError."""
        way, passes = self._way(rows, cache, checkpointing)
        count = self._count(way)
        # All but the last pass are embedded once more, without graphs, to learn what the loss sends back.
        again = count.forward * (1 - 1 / passes) if cache and not way.kept else 0.0
        return (count.all + again) / (way.rows * way.passes)

    def _way(self, rows: int, cache: bool, checkpointing: bool) -> tuple[_Way, int]:
        """What to run, and how many passes there are in truth."""
        passes = math.ceil(self.rows / rows)
        kept = isinstance(self.settings, Contrastive) and (not cache or passes == 1)
        return _Way(rows, min(2, passes), kept, checkpointing), passes

    def _count(self, way: _Way) -> _Count:
        if way not in self._counts:
            try:
                self._counts[way] = self._run(way)
            except NO_CONTENT as problem:
                kind = self.skeleton.model.config.model_type
                reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
                raise UncountableError(
                    f"activations and FLOPs cannot be counted without weights: the code of {kind} needs values "
                    f"({reason}). Start with a small tokens_per_batch, and read the peak of a few steps from `show`."
                ) from problem
        return self._counts[way]

    def _run(self, way: _Way) -> _Count:
        model = self.skeleton.model
        if way.checkpointing:
            # Inside `backward` no function mode is on, so that layers that are computed again bring their own.
            again = {"use_reentrant": False, "context_fn": lambda: (nullcontext(), Kernels(self.device))}
            model.activation_checkpointing_enable(again)
        rate = self.settings.dropout if isinstance(self.settings, Contrastive) else None
        embeddings = self.settings.embedding_dropout if isinstance(self.settings, SimCSE) else None
        forward = 0.0
        try:
            with (
                dropout_of(model, rate, embeddings),
                _chunks_of(self.device),
                counted(self.skeleton, self.device) as live,
            ):
                for _ in range(1 if way.kept else way.passes):
                    live.phase, before = "activations", live.flops
                    outputs = [self._pass(way.rows) for _ in range(way.passes if way.kept else 1)]
                    forward += live.flops - before
                    live.phase = "loss"
                    loss = self._loss(outputs, way)
                    del outputs
                    live.phase = "backward"
                    loss.backward()
                    del loss
                    live.phase = GRADIENTS
                    self.weights.collect()
            return _Count(live.peak, live.heap / max(1, live.peak.total()), forward, live.flops)
        finally:
            for weight in [*self.skeleton.parameters(), *self._masters]:
                weight.grad = None
            if way.checkpointing:
                model.activation_checkpointing_disable()

    def _pass(self, rows: int) -> Tensor:
        """Hidden states, or vectors, of rows without padding."""
        hidden = self.skeleton.states_of(rows, self.tokens)
        if isinstance(self.settings, MNTP):
            return hidden
        keep = torch.ones(rows, self.tokens, dtype=torch.bool, device="meta")
        vectors = pool(hidden, keep, self.skeleton.settings.pooling)
        return F.normalize(vectors, dim=-1) if self.skeleton.settings.normalize else vectors

    def _loss(self, outputs: list[Tensor], way: _Way) -> Tensor:
        if isinstance(self.settings, MNTP):
            return self._token_loss(outputs[0])
        rest = torch.zeros(max(0, self.rows - way.rows * len(outputs)), outputs[0].shape[1], device="meta")
        vectors = torch.cat([*outputs, rest])[: self.rows]
        if not way.kept:
            # Of a batch that is embedded in parts, the loss is computed on vectors alone.
            vectors = vectors.detach().requires_grad_()
        queries = self.rows // (2 + (self.settings.negatives if isinstance(self.settings, Supervised) else 0))
        ignore = torch.zeros(queries, self.rows - queries, dtype=torch.bool, device="meta")
        loss: Tensor = info_nce(vectors[:queries], vectors[queries:], temperature=1.0, ignore=ignore)
        if way.kept:
            return loss
        (slopes,) = torch.autograd.grad(loss, vectors)
        return (outputs[0] * slopes[: len(outputs[0])]).sum()

    def _token_loss(self, hidden: Tensor) -> Tensor:
        head = self.skeleton.head
        assert head is not None
        assert isinstance(self.settings, MNTP)
        shifted = hidden[:, :-1]
        predicted = max(1, round(self.settings.mask_rate * shifted.shape[0] * shifted.shape[1]))
        rows, columns = torch.zeros(2, predicted, dtype=torch.long, device="meta")
        loss: Tensor = token_cross_entropy(
            shifted[rows, columns], head.weight, rows, bias=head.bias, softcap=head.softcap, scale=head.scale
        )
        return loss


def _storages(module: nn.Module) -> dict[int, int]:
    """Storage -> bytes, of all parameters and buffers."""
    held = [item.untyped_storage() for item in (*module.parameters(), *module.buffers())]
    return {storage._cdata: storage.nbytes() for storage in held}


@contextmanager
def _chunks_of(device: str) -> Iterator[None]:
    """The loss cuts its logits as on a device of this type, though its tensors are on none."""
    own = losses.LOGITS_PER_CHUNK["other"]
    losses.LOGITS_PER_CHUNK["other"] = losses.LOGITS_PER_CHUNK["cpu" if device == "cpu" else "other"]
    try:
        yield
    finally:
        losses.LOGITS_PER_CHUNK["other"] = own
