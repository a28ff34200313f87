"""The demo, step by step: harvest, convert, train, measure after each step, ask."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape

from bothways import corpus, hardware, provenance
from bothways.demo.documentation import read_docstrings, read_topics
from bothways.demo.pairs import Documentation, split
from bothways.demo.settings import QUESTIONS, RECIPE, Recipe
from bothways.encoder import Encoder
from bothways.evaluation import FLOOR, Embeds, TfIdf, score
from bothways.evaluation.baselines import random_weights
from bothways.evaluation.tables import Row, table, write_json
from bothways.folders import refuse_taken
from bothways.stages.convert import convert
from bothways.stages.mntp import mntp
from bothways.stages.simcse import simcse
from bothways.stages.supervised import supervised

Made = TypeVar("Made", bound=Embeds)

RESULTS = "demo.json"
ANSWERS = 3
SHOWN_LETTERS = 160


def run(out: str | Path | None = None, recipe: Recipe = RECIPE, documentation: Documentation | None = None) -> Path:
    """All of the demo; returns the folder, with encoder/, corpus/ and demo.json in it. See `bothways.demo.run`."""
    out = Path(tempfile.mkdtemp(prefix="bothways-demo-") if out is None else out)
    refuse_taken(out)
    begun = time.monotonic()
    notes, screen = Console(stderr=True), Console()
    notes.print("Reading the documentation on this machine (with ast, nothing is imported) ...", highlight=False)
    documentation = documentation or split(read_docstrings(), read_topics())
    facts = counts(documentation)
    notes.print("  " + ", ".join(f"{value:,} {name}" for name, value in facts.items()), highlight=False)
    sheet = Sheet(documentation, notes)
    with warnings.catch_warnings():
        # Every text is read up to recipe.max_length tokens, by every encoder of the table alike.
        warnings.filterwarnings("ignore", message=".*max_length.* were cut")
        encoder = taught(sheet, recipe)
        encoder.save_pretrained(out / "encoder")
        corpus.embed(encoder, documentation.library, out / "corpus", saved=out / "encoder")
    screen.print(table(title(documentation), sheet.rows))
    answers = ask(encoder, out / "corpus", QUESTIONS)
    show(screen, answers, len(documentation.library))
    seconds = time.monotonic() - begun
    results = {
        "versions": provenance.versions(),
        "hardware": hardware.describe(),
        "command": "bothways demo",
        "documentation": facts,
        "recipe": asdict(recipe),
        "rows": sheet.rows,
        "seconds": round(seconds, 1),
        "peak_memory_bytes": hardware.peak_memory_bytes(),
        "answers": answers,
    }
    write_json(out / RESULTS, results)
    screen.print(f"\n{seconds:.0f} seconds in all. Encoder, encoded documentation and figures: {out}", highlight=False)
    return out


def taught(sheet: Sheet, recipe: Recipe) -> Encoder:
    """The encoder after all stages, with a row of the sheet for each and for what it is compared with."""
    data = sheet.documentation
    sheet.measure(FLOOR, lambda: TfIdf.of(data.test))
    causal = sheet.measure(
        "causal decoder", lambda: convert(recipe.base, direction="causal", max_length=recipe.max_length)
    )
    sheet.measure("random weights", lambda: random_weights(causal))
    encoder = sheet.measure("converted", lambda: convert(recipe.base, max_length=recipe.max_length))
    sheet.measure("+ MNTP", lambda: mntp(encoder, data.texts, recipe.mntp))
    sheet.measure("+ SimCSE", lambda: simcse(encoder, data.texts, recipe.simcse))
    return sheet.measure("+ supervised", lambda: supervised(encoder, data.examples(), recipe.supervised))


@dataclass
class Sheet:
    """The table as it grows."""

    documentation: Documentation
    notes: Console
    rows: list[Row] = field(default_factory=list)

    def measure(self, name: str, make: Callable[[], Made]) -> Made:
        """Run a step, score what it makes on the held-out pairs, and add the row. Seconds are the step's alone."""
        begun = time.monotonic()
        made = make()
        seconds = time.monotonic() - begun
        figures = score(made, self.documentation.test)
        peak = hardware.peak_memory_bytes() / 2**30
        self.rows.append({"step": name, **figures, "seconds": round(seconds, 1), "peak GiB": round(peak, 2)})
        listed = ", ".join(f"{measure} {value:.3f}" for measure, value in figures.items())
        self.notes.print(f"{name}: {listed} ({seconds:.0f} s)", highlight=False)
        return made


def counts(documentation: Documentation) -> dict[str, int]:
    """How much there is of everything."""
    return {
        "training pairs": len(documentation.pairs),
        "unlabelled texts": len(documentation.texts),
        "pairs to choose the recipe on": len(documentation.dev.queries),
        "held-out pairs": len(documentation.test.queries),
        "documents to ask": len(documentation.library),
    }


def title(documentation: Documentation) -> str:
    """What the table shows."""
    count = len(documentation.test.queries)
    return f"Finding a docstring by its first sentence: {count:,} of modules that no step has seen"


def ask(encoder: Encoder, folder: Path, questions: Sequence[str]) -> list[dict[str, Any]]:
    """Each question with the documents found, best first."""
    opened = corpus.Corpus.open(folder)
    vectors = encoder.encode_query(list(questions))
    return [
        {"question": question, "found": [asdict(hit) for hit in opened.search(vector, ANSWERS)]}
        for question, vector in zip(questions, vectors, strict=True)
    ]


def show(screen: Console, answers: Sequence[dict[str, Any]], count: int) -> None:
    """Questions and documents on the screen."""
    screen.print(f"\nAsked of the standard library's {count:,} docstrings:", highlight=False)
    for answer in answers:
        screen.print(f"\n[bold]{escape(answer['question'])}[/bold]", highlight=False)
        for hit in answer["found"]:
            text = hit["text"]
            shown = text if len(text) <= SHOWN_LETTERS else text[:SHOWN_LETTERS].rsplit(" ", 1)[0] + " ..."
            screen.print(f"  {hit['score']:.2f}  {escape(hit['id'])}: {escape(shown)}", highlight=False)
