"""From a step of one side to its trained model and its scores, each computed once."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks import llm2vec_env
from benchmarks.frame import ROOT, say
from benchmarks.peers.quality_wire import Job
from benchmarks.quality import cells
from benchmarks.quality.data import DEV_OF, MEASURES, Corpus, Drawn, draw, read_tasks, texts_of
from benchmarks.quality.settings import CHAINS, LLM2VEC, OURS, RANDOM, ST, STAGE, Chosen, Decoder, Size, stage_settings
from benchmarks.quality.sides import FORMS, WORKERS, perform
from bothways import loading, provenance
from bothways.demo.pairs import Clean
from bothways.evaluation import Embeds, Task, score
from bothways.evaluation.vectors import unit_rows


@dataclass(frozen=True)
class Step:
    """One cell of the table before it is scored: a side after a stage, under a seed."""

    side: str
    stage: str
    seed: int
    chosen: Chosen
    before: Step | None = None
    steps: int | None = None
    """Of its training, for a side whose batches do not decide them."""

    @property
    def lesson(self) -> str:
        """What a job calls the stage."""
        return STAGE.get(self.stage, "random")

    @property
    def taught(self) -> bool:
        """Whether anything is learnt in it."""
        return self.lesson in self.chosen


class Vectors:
    """Vectors that were computed elsewhere, scaled to unit length: so all sides are scored on the same footing."""

    def __init__(self, texts: Sequence[str], rows: Any) -> None:
        self.place = {text: number for number, text in enumerate(texts)}
        self.rows = unit_rows(rows)

    def encode_query(self, texts: Sequence[str], /) -> Any:
        """The rows of some of the texts."""
        return self.rows[[self.place[text] for text in texts]]

    encode_document = encode_query


class Bench:
    """One decoder, one size, one folder of data."""

    def __init__(
        self, decoder: Decoder, size: Size, data: Path, models: Path, corpus: Corpus, kept: cells.Cells, precision: str
    ) -> None:
        self.decoder, self.size, self.data, self.corpus, self.cells = decoder, size, data, corpus, kept
        self.precision = precision
        self.base = loading.EMBEDDED if decoder.folder is None else models / decoder.folder
        self.tokenizer = loading.load_tokenizer(self.base, trust_remote_code=False)
        self.tasks = {split: self._tasks(split) for split in ("test", "dev")}
        self._drawn: dict[int, Drawn] = {}

    def _tasks(self, split: str) -> dict[str, Task]:
        found = read_tasks(self.data, split, self.size.most)
        names = [DEV_OF.get(name, name) if split == "dev" else name for name in self.decoder.tasks]
        return {name: found[name] for name in names}

    def _spelled(self, split: str) -> Any:
        return {name: cells.key_of(_plain(task)) for name, task in self.tasks[split].items()}

    @cached_property
    def clean(self) -> Clean:
        """Says whether a text may be learnt from: nothing that any decoder is judged by, on either split."""
        tasks = [task for split in ("test", "dev") for task in read_tasks(self.data, split).values()]
        return Clean(text for task in tasks for text in _evaluated(task))

    def drawn(self, seed: int) -> Drawn:
        """What is learnt from under that seed, by every side alike."""
        if seed not in self._drawn:
            found = draw(self.corpus, seed, self.size.tokens, self._count, self.decoder.reads, self.clean)
            self._drawn[seed] = found
        return self._drawn[seed]

    def _count(self, texts: list[str], most: int | None) -> list[int]:
        encoded = self.tokenizer.backend_tokenizer.encode_batch_fast(texts)
        return [len(row) if most is None else min(len(row), most) for row in encoded]

    def scores(self, step: Step, split: str) -> dict[str, float]:
        """Task -> its main measure."""
        why = {"trained": self.why(step), "tasks": self._spelled(split), "reads": self.decoder.encodes}
        why |= {"measuring": cells.measuring()}
        key = cells.key_of(why)
        found = self.cells.get("score", key)
        if found is None:
            found = self._compute(step, split)
            self.cells.put("score", key, why, found)
            listed = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
            say(f"{self.decoder.name}: {step.side} {step.stage}, seed {step.seed}, {split}: {listed}")
        return found

    def training(self, step: Step) -> dict[str, Any]:
        """Seconds, steps and last loss of the step's training, which is done now if it was not yet."""
        key = cells.key_of(self.why(step))
        if self.cells.get("train", key) is None or not self.cells.model(key).exists():
            self._perform(step, None)
        found = self.cells.get("train", key)
        assert found is not None
        return found

    def why(self, step: Step) -> dict[str, Any]:
        """Everything that decides the weights and vectors of a step."""
        why: dict[str, Any] = {
            "base": provenance.fingerprint_files(loading.weight_files(self.base)),
            "side": step.side,
            "stage": step.stage,
            "code": self._code(step.side),
            "reads": self.decoder.encodes,
        }
        if step.taught:
            drawn = self.drawn(step.seed)
            why |= {
                "settings": self._settings(step),
                "data": cells.key_of(vars(drawn)),
                "precision": self.precision,
            }
        if step.side == RANDOM or step.taught:
            why["seed"] = step.seed
        if step.before is not None:
            why["before"] = cells.key_of(self.why(step.before))
        return why

    def _code(self, side: str) -> str:
        peers = ROOT / "benchmarks" / "peers"
        own = cells.digest([peers / "quality_wire.py", peers / f"{WORKERS.get(side, 'quality_bothways')}.py"])
        if side == LLM2VEC:
            return cells.key_of([own, llm2vec_env.PINS.read_text(encoding="utf-8")])
        versions = provenance.versions() | ({ST: metadata.version(ST)} if side == ST else {})
        return cells.key_of([own, versions, "" if side == ST else cells.library()])

    def _settings(self, step: Step) -> dict[str, Any]:
        drawn, stage = self.drawn(step.seed), step.lesson
        items = {"mntp": drawn.blocks, "simcse": drawn.texts, "supervised": drawn.triplets}[stage]
        found = stage_settings(stage, self.decoder, self.size, len(items), step.chosen)
        return found if step.steps is None else {**found, "steps": step.steps}

    def _compute(self, step: Step, split: str) -> dict[str, float]:
        texts = list(dict.fromkeys(text for task in self.tasks[split].values() for text in texts_of(task)))
        encoder = Vectors(texts, self._perform(step, texts))
        return {name: main_score(encoder, task) for name, task in self.tasks[split].items()}

    def _perform(self, step: Step, texts: list[str] | None) -> Any:
        """Train what is not trained yet, and encode `texts`."""
        why = self.why(step)
        key = cells.key_of(why)
        here = self.cells.model(key)
        missing = step.taught and (self.cells.get("train", key) is None or not here.exists())
        start: Path | None = here if step.taught else None
        if missing and step.before is not None and step.before.taught:
            self.training(step.before)
            start = self.cells.model(cells.key_of(self.why(step.before)))
        elif missing:
            start = None
        with tempfile.TemporaryDirectory() as folder:
            vectors = Path(folder) / "vectors.npy"
            job = Job(
                base=str(self._base_for(step.side)),
                start=None if start is None else str(start),
                stage=step.lesson,
                out=str(here) if missing else None,
                max_length=self.decoder.encodes,
                encode=texts or [],
                vectors=None if texts is None else str(vectors),
                seed=step.seed,
                **(self._lesson(step) if missing else {}),
            )
            if missing:
                shutil.rmtree(here, ignore_errors=True)
            facts = perform(step.side, job, Path(folder))
            if missing:
                self.cells.put("train", key, why, facts)
                say(f"{self.decoder.name}: {step.side} {step.stage}, seed {step.seed}: {_told(facts)}")
            return None if texts is None else np.load(vectors)

    def timed(self, step: Step, folder: Path) -> dict[str, Any]:
        """What a training of the bare decoder took with the step's settings; nothing of it is kept."""
        base = str(self._base_for(step.side))
        job = Job(base=base, stage=step.lesson, out=str(folder / "model"), seed=step.seed, **self._lesson(step))
        return perform(step.side, job, folder)

    def _lesson(self, step: Step) -> dict[str, Any]:
        drawn, stage = self.drawn(step.seed), step.lesson
        return {
            "settings": self._settings(step),
            "texts": {"mntp": drawn.blocks, "simcse": drawn.texts}.get(stage, []),
            "examples": [list(triplet) for triplet in drawn.triplets] if stage == "supervised" else [],
            "precision": self.precision,
        }

    def _base_for(self, side: str) -> Path:
        """The decoder in the form that a side reads; made once."""
        if side in (OURS, RANDOM):
            return self.base
        why = [side, provenance.fingerprint_files(loading.weight_files(self.base)), self.decoder.encodes, "1"]
        folder = self.cells.model(f"base-{cells.key_of(why)}")
        if not folder.exists():
            FORMS[side](self.base, folder, self.decoder.encodes)
        return folder


def main_score(encoder: Embeds, task: Task) -> float:
    """The measure that a task is known by."""
    # Small matrices: on a machine that does something else too, a second thread costs ten times the work itself.
    with threadpool_limits(1):
        return float(score(encoder, task)[MEASURES[type(task)]])


def chain(side: str, seed: int, chosen: Chosen, steps: Mapping[str, int] | None = None) -> dict[str, Step]:
    """Stage -> the step of a side, each from the one before. `steps`: of optimisation, where they are given."""
    found: dict[str, Step] = {}
    before = None
    for stage in CHAINS[side]:
        before = Step(side, stage, seed, chosen, before, None if steps is None else steps[stage])
        found[stage] = before
    return found


def _told(facts: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in facts.items()
    )


def _plain(task: Task) -> Any:
    return json.loads(json.dumps(vars(task), default=vars))


NO_TEXTS = ("scores", "relevance", "train_labels", "test_labels", "labels")


def _evaluated(task: Task) -> list[str]:
    """All texts of a task, also those that are not encoded in the end."""
    fields = (value for name, value in vars(task).items() if name != "name" and name not in NO_TEXTS)
    items = [item for value in fields for item in value]
    return [item if isinstance(item, str) else item.text for item in items]
