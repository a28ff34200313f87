"""One stage from its first step, or the one after a checkpoint, to its last."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bothways.errors import TrainingError
from bothways.training import checkpoint, sharded
from bothways.training.average import Average
from bothways.training.choices import Choices
from bothways.training.interrupt import asked_to_stop
from bothways.training.meeting import all_settle
from bothways.training.memory import Memory
from bothways.training.processes import gathered, wait
from bothways.training.progress import Show
from bothways.training.settings import Training
from bothways.training.sharing import Share, take_up, tensors_of
from bothways.training.signals import Signals
from bothways.training.task import Part, Task
from bothways.training.trackers import Trackers


@dataclass
class State:
    """How far a run has come."""

    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    held_out: dict[int, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Done:
    """What one step was: the loss of the global batch, the tokens of all processes, the gradient's length."""

    loss: float
    tokens: int
    norm: float
    stop: bool = False
    """Whether a process was asked to stop."""


@dataclass(frozen=True)
class Setting:
    """Where a run takes place."""

    share: Share
    memory: Memory
    show: Show
    trackers: Trackers
    folder: Path | None
    identity: Mapping[str, Any]
    choices: Choices


class Run:
    """The loop over the steps, with everything that is kept between them."""

    def __init__(self, task: Task, settings: Training, around: Setting) -> None:
        self.task, self.settings = task, settings
        self.share, self.memory, self.show = around.share, around.memory, around.show
        self.trackers, self.folder, self.identity = around.trackers, around.folder, around.identity
        self._choices = around.choices
        self.place = self.share.place
        self.optimiser = self.share.optimiser
        self.average = Average(self.share.masters, settings.ema_decay) if settings.ema_decay else None
        self.state = State()
        self.asked = threading.Event()

    @property
    def choices(self) -> Choices:
        """As they are by now: the memory may have run out since."""
        memory = {"tokens_per_batch": self.memory.tokens, "gradient_checkpointing": self.memory.checkpointing}
        return Choices(**{**self._choices.plain(), **memory})

    def start(self, saved: Mapping[str, Any] | None) -> None:
        """Let the task begin, and take up a checkpoint if there is one.

        Raises TrainingError if nothing can be learnt, and if not every process has found the same checkpoint.
        """
        begin = partial(self.share.call, partial(self.task.start, self.memory.cut))
        if message := self.memory.fits(begin, lambda: None):
            self.show.say(message)
        self._agree()
        steps = gathered(self.place, -1 if saved is None else saved["step"])
        if len(set(steps)) > 1:
            raise TrainingError(
                f"{self.folder}: the processes found checkpoints of different steps ({', '.join(map(str, steps))}; -1: "
                "none). Use a folder that all of them share."
            )
        if saved is None:
            return
        if self.share.sharded:
            sharded.ready(self.share.masters, self.optimiser)
            sharded.read_shards(tensors_of(self.share.masters, self.optimiser, self.average), saved["path"])
        else:
            take_up(saved["tensors"], self.share.masters, self.optimiser, self.average)
        self.share.publish()
        if saved["choices"]["gradient_checkpointing"] and self.settings.gradient_checkpointing != "off":
            self.memory.checkpoint()
        self.state = State(saved["step"], saved["seconds"], saved["losses"], saved["held_out"])
        self.show.say(f"resumed after step {self.state.step}")

    def _agree(self) -> None:
        """Nothing, or TrainingError where the processes would train something else: other data, weights, kernels."""
        own = {
            **self.identity,
            **{name: value for name, value in self._choices.plain().items() if name != "tokens_per_batch"},
        }
        every = gathered(self.place, own)
        for rank, other in enumerate(every):
            for name, value in every[0].items():
                if other.get(name) != value:
                    raise TrainingError(
                        f"process {rank} differs from process 0: {name} is {other.get(name)!r} there and {value!r} "
                        "here. Give all processes the same encoder, data and settings, and the same versions."
                    )

    def go(self) -> None:
        """All steps that are left."""
        state, settings = self.state, self.settings
        begun = time.monotonic() - state.seconds
        with asked_to_stop() as self.asked:
            self._measure()
            while state.step < settings.steps:
                since = time.monotonic()
                done = self.step(state.step)
                state.step += 1
                state.losses.append(done.loss)
                state.seconds = time.monotonic() - begun
                self._report(done, time.monotonic() - since)
                last = state.step == settings.steps
                if not last:
                    self._measure()
                stop = done.stop or (self.place.processes == 1 and self.asked.is_set())
                # After the last step too: what comes then, up to the folder that is written, may fail.
                if stop or last or (settings.save_every and state.step % settings.save_every == 0):
                    self._save()
                if stop:
                    self._stop()
            if self.average is not None:
                self.average.adopt()
                self.share.publish()
            self._measure()
            if any(gathered(self.place, int(self.asked.is_set()))):
                self._stop()
        state.seconds = time.monotonic() - begun

    def step(self, number: int) -> Done:
        """One optimiser step, counted from 0. Raises TrainingError for a loss or gradient that is not finite."""
        signals = self._attempt(number)
        while not self.share.sharded and not all_settle(
            self.place, self.task.encoder.device, failed=signals.failure is not None
        ):
            self.share.drop()
            signals = self._attempt(number)
        failure = signals.failure
        signals.stop = self.asked.is_set()
        signals.micro_batch, signals.checkpointing = self.memory.tokens, self.memory.checkpointing
        agreed = signals.agree(self.share.settle, self.task.encoder.device)
        if failure is not None:
            raise failure
        self.memory.take(agreed.micro_batch, agreed.checkpointing)
        norm = self.share.step(self.settings.rate(number)) if math.isfinite(agreed.loss) else math.nan
        self._check_finite(number, agreed.loss, norm)
        if self.average is not None:
            self.average.follow(number)
        return Done(agreed.loss, agreed.tokens, norm, agreed.stop)

    def _attempt(self, number: int) -> Signals:
        """The gradient of a step, and what the other processes are to hear of it."""
        signals = Signals(self.place)
        try:
            signals.loss, signals.tokens = self.memory.fits(partial(self._gradient, number), self.share.drop)
        except Exception as problem:
            if self.place.processes == 1 or self.share.sharded:
                raise
            # The others wait for this process's gradient: told in the same breath, they stop too, and cleanly.
            self.share.drop()
            signals.failure = problem
        return signals

    def _gradient(self, number: int) -> tuple[float, int]:
        """This process's share of the batch's loss and gradient, and the tokens it computed."""
        total, tokens = torch.zeros((), device=self.task.encoder.device), 0
        parts = iter(self.task.parts(self.task.order.batch(number), self.place, self.memory.cut))
        found: list[Part] = []

        def forward() -> torch.Tensor | None:
            found[:] = [part for part in (next(parts, None),) if part is not None]
            return found[0].loss if found else None

        while (loss := self.share.call(forward)) is not None:
            self.share.backward(loss)
            total += loss.detach().float()
            tokens += found[0].tokens
        return float(total), tokens

    def _check_finite(self, number: int, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        which = "gradient" if math.isfinite(loss) else "loss"
        kept = [] if self.folder is None else checkpoint.found(self.folder)
        again = f" Was it the machine, go on from {kept[-1]} with --resume." if kept else ""
        raise TrainingError(
            f"{self.task.name}: the {which} of step {number + 1} is not finite (loss {loss}). "
            f"Use a lower learning_rate (now {self.settings.learning_rate:g}), a longer warm_up "
            f'(now {self.settings.warm_up:g}) or precision="fp32".{again}'
        )

    def _report(self, done: Done, seconds: float) -> None:
        rate = done.tokens / seconds
        self.show.step(self.state.step, done.loss, rate)
        values = {"loss": done.loss, "learning_rate": self.settings.rate(self.state.step - 1)}
        self.trackers.log(self.state.step, {**values, "gradient_norm": done.norm, "tokens_per_second": rate})

    def _measure(self) -> None:
        """Scores on what is held out, where this step is one of those at which it is measured."""
        step, every = self.state.step, self.settings.evaluate_every
        due = step in (0, self.settings.steps) or (every and step % every == 0)
        if not due or step in self.state.held_out:
            return
        training = self.task.encoder.training
        compute = partial(self.share.call, partial(self.task.scores, self.memory.cut))
        with torch.no_grad():
            scores = self.memory.fits(compute, lambda: None)
        self.task.encoder.train(training)
        if scores:
            self.state.held_out[step] = scores
            listed = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
            self.show.say(f"held out after step {step}: {listed}")
            self.trackers.log(step, {f"held_out/{name}": value for name, value in scores.items()})

    def _save(self) -> None:
        """A checkpoint, where there is a folder. A disk that is full is said, and training goes on."""
        if self.folder is None or not (self.place.main or self.share.sharded):
            return
        tensors = tensors_of(self.share.masters, self.optimiser, self.average)
        facts = {
            "identity": dict(self.identity),
            "choices": self.choices.plain(),
            "losses": self.state.losses,
            "held_out": self.state.held_out,
            "seconds": self.state.seconds,
        }
        try:
            if self.share.sharded:
                write, agree = partial(sharded.write_shards, tensors), partial(gathered, self.place)
                checkpoint.save_shards(self.folder, self.state.step, facts, write, main=self.place.main, agree=agree)
            else:
                checkpoint.save(self.folder, self.state.step, {**facts, "tensors": tensors})
        except (OSError, RuntimeError) as problem:
            if not checkpoint.is_full(problem):
                raise
            kept = [path.name for path in checkpoint.found(self.folder)]
            there = f"{kept[-1]} is still there" if kept else "there is none yet"
            self.show.say(
                f"no checkpoint of step {self.state.step}: no space left in {self.folder}; {there}. Training goes on, "
                "the next one is tried again"
            )

    def _stop(self) -> None:
        # Whoever leaves first ends the launch for all, and the main process may still be writing.
        wait(self.place)
        kept = [] if self.folder is None else checkpoint.found(self.folder)
        where = f"resume from {kept[-1]}" if kept else "no checkpoint is kept"
        self.show.say(f"interrupted after step {self.state.step}; {where}")
        raise KeyboardInterrupt
