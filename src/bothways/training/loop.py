"""The loop that every stage shares. What a stage teaches is a `Task`; everything else about training is here."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from torch import Tensor

from bothways import hardware
from bothways.bidirectional.probe import probe
from bothways.encoder import Encoder
from bothways.errors import TrainingError
from bothways.packing import packing
from bothways.training import checkpoint
from bothways.training.batches import Batch, Order
from bothways.training.interrupt import first_ctrl_c
from bothways.training.kernel import training_attention
from bothways.training.precision import WorkingWeights
from bothways.training.progress import Show, progress
from bothways.training.randomness import borrowed_generators, seed_everything
from bothways.training.settings import Training
from bothways.training.tuning import tuned

NOT_IDENTITY = ("save_every", "evaluate_every")
"""Settings that may change when a run is resumed, because no number depends on them."""
LAST_STEPS = 20
"""The final loss is the mean of so many steps."""


Cut = Callable[[Sequence[int]], list[list[int]]]
"""Lengths of rows -> positions of those that go through the model together."""


@dataclass(frozen=True)
class Part:
    """A share of a batch's loss, small enough for the memory; the parts of a batch, on all processes, add up to it."""

    loss: Tensor
    tokens: int


@dataclass(frozen=True)
class Place:
    """Which of how many processes this is."""

    rank: int
    processes: int


@runtime_checkable
class Task(Protocol):
    """What a stage teaches."""

    name: str
    encoder: Encoder
    items: int
    """Items to train on."""
    longest: int
    """Tokens of the longest row."""
    facts: Mapping[str, Any]
    """What the record says of the stage besides settings and scores: data, mask token, ..."""

    def start(self, cut: Cut) -> str:
        """What to say before the first step, also of a resumed run. Raises TrainingError if nothing can be learnt."""

    def parts(self, batch: Batch, place: Place, cut: Cut) -> Iterator[Part]:
        """The parts of the batch that are this process's; the gradient of each is taken before the next is made."""

    def scores(self, cut: Cut) -> dict[str, float]:
        """Measured on what is held out; "loss" among them. Empty if nothing is."""


@dataclass
class State:
    """How far a run has come."""

    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    held_out: dict[int, dict[str, float]] = field(default_factory=dict)


def train(
    task: Task,
    settings: Training,
    *,
    checkpoint_dir: str | Path | None = None,
    resume: bool = False,
    show_progress: bool = True,
) -> Encoder:
    """Train `task.encoder` in place, add the stage to its record, and return it.

    With a `checkpoint_dir`, Ctrl-C finishes the step, writes a checkpoint and raises KeyboardInterrupt; `resume` goes
    on from the last checkpoint there and gives, on the same device, what the uninterrupted run would have given.

    Raises TrainingError for a loss or gradient that is not finite, and for a checkpoint of another run.
    """
    with borrowed_generators():
        seed_everything(settings.seed)
        accelerator = Accelerator(device_placement=False)
        encoder = task.encoder.to(accelerator.device) if accelerator.num_processes > 1 else task.encoder
        precision = hardware.choose_dtype(settings.precision, encoder.device)
        resolved = {**asdict(settings), "precision": str(precision.value).removeprefix("torch.")}
        folder = None if checkpoint_dir is None else Path(checkpoint_dir)
        wanted = show_progress and accelerator.is_main_process
        weights_before = checkpoint.fingerprint(encoder)
        with (
            progress(task.name, settings.steps, wanted=wanted) as show,
            training_attention(encoder, task.longest) as attention,
            packing(encoder.model) as packed,
            tuned(encoder, settings, precision.value) as weights,
        ):
            cut = partial(packed.groups, tokens=settings.tokens_per_batch)
            count = sum(master.numel() for master in weights.masters.values())
            show.say(f"{task.items:,} items, {count:,} weights to train, {precision.value} ({precision.why})")
            show.say(f"{attention.value} attention ({attention.why}); {packed.why}")
            identity = _identity(task, resolved, attention=attention.value, weights=weights_before)
            if message := task.start(cut):
                show.say(message)
            run = _Run(task, settings, accelerator, weights, show, folder, identity, cut)
            run.resume(resume)
            run.go()
        _finish(encoder, task, {**resolved, "attn_implementation": attention.value}, run.state)
    return encoder


def _identity(task: Task, resolved: dict[str, Any], **facts: str) -> dict[str, Any]:
    return checkpoint.identity(
        {name: value for name, value in resolved.items() if name not in NOT_IDENTITY},
        stage=task.name,
        **{f"data {name}": value for name, value in task.facts["data"].items()},
        **facts,
    )


def _finish(encoder: Encoder, task: Task, resolved: dict[str, Any], state: State) -> None:
    before = encoder.record.certificate
    certificate = probe(encoder.model, {} if before is None else {item.name: item.treatment for item in before.modules})
    if encoder.settings.direction == "bidirectional":
        certificate.require_bidirectional()
    last = state.losses[-LAST_STEPS:]
    encoder.record = replace(encoder.record, certificate=certificate).add(
        task.name,
        settings=resolved,
        **task.facts,
        loss=sum(last) / len(last),
        held_out={str(step): scores for step, scores in state.held_out.items()},
        seconds=round(state.seconds, 1),
        peak_memory_bytes=hardware.peak_memory_bytes(),
    )


class _Run:
    """One stage from its first step, or the one after a checkpoint, to its last."""

    def __init__(
        self,
        task: Task,
        settings: Training,
        accelerator: Accelerator,
        weights: WorkingWeights,
        show: Show,
        folder: Path | None,
        identity: dict[str, Any],
        cut: Cut,
    ) -> None:
        self.cut = cut
        self.task, self.settings, self.accelerator = task, settings, accelerator
        self.weights, self.show = weights, show
        self.folder, self.identity = folder, identity
        self.place = Place(accelerator.process_index, accelerator.num_processes)
        self.order = Order(task.items, settings.batch_size, settings.seed)
        self.optimiser = _optimiser(weights, settings)
        self.state = State()

    def resume(self, wanted: bool) -> None:
        """Take up the last checkpoint, if that is wanted and there is one."""
        saved = checkpoint.load(self.folder, self.identity) if wanted and self.folder is not None else None
        if saved is None:
            return
        with torch.no_grad():
            for name, master in self.weights.masters.items():
                master.copy_(saved["weights"][name])
        self.optimiser.load_state_dict(saved["optimiser"])
        self.weights.publish()
        self.state = State(saved["step"], saved["seconds"], saved["losses"], saved["held_out"])
        self.show.say(f"resumed after step {self.state.step}")

    def go(self) -> None:
        """All steps that are left."""
        state, settings = self.state, self.settings
        begun = time.monotonic() - state.seconds
        with first_ctrl_c() as interrupted:
            self._measure()
            while state.step < settings.steps:
                since = time.monotonic()
                loss, tokens = self._step(state.step)
                state.step += 1
                state.losses.append(loss)
                state.seconds = time.monotonic() - begun
                self.show.step(state.step, loss, tokens / (time.monotonic() - since))
                self._measure()
                last = state.step == settings.steps
                if interrupted.is_set() or (settings.save_every and state.step % settings.save_every == 0 and not last):
                    self._save()
                if interrupted.is_set():
                    kept = "no checkpoint is kept" if self.folder is None else f"resume from {self.folder}"
                    self.show.say(f"interrupted after step {state.step}; {kept}")
                    raise KeyboardInterrupt
        state.seconds = time.monotonic() - begun

    def _step(self, step: int) -> tuple[float, int]:
        """One optimiser step. Returns the loss of the global batch and the tokens this process computed."""
        total, tokens = torch.zeros((), device=self.task.encoder.device), 0
        for part in self.task.parts(self.order.batch(step), self.place, self.cut):
            self.accelerator.backward(part.loss)
            self.weights.collect()
            total += part.loss.detach().float()
            tokens += part.tokens
        masters = list(self.weights.masters.values())
        if self.place.processes > 1:
            # Summed once per step, after all parts: their losses are shares of one global loss.
            total = self.accelerator.reduce(total)
            for master in masters:
                grad = torch.zeros_like(master) if master.grad is None else master.grad
                master.grad = self.accelerator.reduce(grad)
        norm = self.accelerator.clip_grad_norm_(masters, self.settings.max_grad_norm or math.inf)
        loss = float(total)
        if not math.isfinite(loss) or not torch.isfinite(norm):
            which = "gradient" if math.isfinite(loss) else "loss"
            raise TrainingError(
                f"{self.task.name}: the {which} of step {step + 1} is not finite (loss {loss}). "
                f"Use a lower learning_rate (now {self.settings.learning_rate:g}), a longer warm_up "
                f'(now {self.settings.warm_up:g}) or precision="fp32".'
            )
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.rate(step)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.weights.publish()
        return loss, tokens

    def _measure(self) -> None:
        """Scores on what is held out, where this step is one of those at which it is measured."""
        step, every = self.state.step, self.settings.evaluate_every
        due = step in (0, self.settings.steps) or (every and step % every == 0)
        if not due or step in self.state.held_out:
            return
        training = self.task.encoder.training
        with torch.no_grad():
            scores = self.task.scores(self.cut)
        self.task.encoder.train(training)
        if scores:
            self.state.held_out[step] = scores
            listed = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
            self.show.say(f"held out after step {step}: {listed}")

    def _save(self) -> None:
        if self.folder is None or not self.accelerator.is_main_process:
            return
        checkpoint.save(
            self.folder,
            self.state.step,
            {
                "identity": self.identity,
                "weights": {name: master.detach() for name, master in self.weights.masters.items()},
                "optimiser": self.optimiser.state_dict(),
                "losses": self.state.losses,
                "held_out": self.state.held_out,
                "seconds": self.state.seconds,
            },
        )


def _optimiser(weights: WorkingWeights, settings: Training) -> torch.optim.AdamW:
    masters = list(weights.masters.values())
    groups = [
        {"params": [master for master in masters if master.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [master for master in masters if master.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=settings.learning_rate, fused=True)
