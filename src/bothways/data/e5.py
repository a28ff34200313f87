"""The folder of the paper's supervised stage: 14 data sets of public text pairs, a `.jsonl` file each.

Names, instructions and which tasks are symmetric: Wang et al. 2024 (arXiv 2401.00368), app. A; Springer et al. 2024
(arXiv 2402.15449), who published the folder; LLM2Vec (arXiv 2404.05961), app. D.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bothways.errors import DataError

SUFFIXES = (".jsonl", ".jsonl.gz")


@dataclass(frozen=True)
class Task:
    """What the queries of a data set look for. Of a symmetric one, documents get the instruction too."""

    instruction: str
    symmetric: bool = False


_WIKIPEDIA = Task("Given a question, retrieve Wikipedia passages that answer the question")

SETS: dict[str, tuple[Task, ...]] = {
    "allnli": (
        Task("Given a premise, retrieve a hypothesis that is entailed by the premise"),
        Task("Retrieve semantically similar text", symmetric=True),
    ),
    "dureader": (Task("Given a Chinese search query, retrieve web passages that answer the question"),),
    "eli5_question_answer": (
        Task("Provided a user question, retrieve the highest voted answers on Reddit ELI5 forum"),
    ),
    "fever": (Task("Given a claim, retrieve documents that support or refute the claim"),),
    "hotpot_qa": (Task("Given a multi-hop question, retrieve documents that can help answer the question"),),
    "miracl": (_WIKIPEDIA,),
    "mrtydi": (_WIKIPEDIA,),
    "msmarco_passage": (Task("Given a web search query, retrieve relevant passages that answer the query"),),
    "msmarco_document": (Task("Given a web search query, retrieve relevant documents that answer the query"),),
    "nq": (_WIKIPEDIA,),
    "quora_duplicates": (
        Task(
            "Given a question, retrieve questions that are semantically equivalent to the given question",
            symmetric=True,
        ),
        Task("Find questions that have the same meaning as the input question", symmetric=True),
    ),
    "squad": (Task("Retrieve Wikipedia passages that answer the question"),),
    "t2ranking": (Task("Given a Chinese search query, retrieve web passages that answer the question"),),
    "trivia_qa": (Task("Retrieve Wikipedia passages that answer the question"),),
}
"""Each data set and its tasks. Of two, the one has the file NAME_split1, the other NAME_split2; or they take turns."""
ENOUGH = len(SETS) // 2
"""A folder with so many of the data sets is the E5 folder."""


@dataclass(frozen=True)
class Part:
    """The rows of one task: a file, or every `turns`-th row of it."""

    path: Path
    task: Task
    turn: int = 0
    turns: int = 1

    @property
    def name(self) -> str:
        """The file, and which rows of it."""
        return self.path.name if self.turns == 1 else f"{self.path.name} ({self.turn + 1} of {self.turns})"

    def holds(self, number: int) -> bool:
        """Whether a row, counted from 1, is one of them."""
        return (number - 1) % self.turns == self.turn


def is_e5(folder: Path) -> bool:
    """Whether a folder holds at least half of the data sets."""
    files = _files(folder)
    return sum(any(stem in files for stem in (name, f"{name}_split1")) for name in SETS) >= ENOUGH


def parts_of(folder: Path) -> list[Part]:
    """The tasks that are there. Where a data set stands both whole and split, the two halves are read.

    Raises DataError if there is none.
    """
    files = _files(folder)
    parts: list[Part] = []
    for name, tasks in SETS.items():
        halves = {f"{name}_split{number}": task for number, task in enumerate(tasks, start=1) if len(tasks) > 1}
        found = [Part(files[half], task) for half, task in halves.items() if half in files]
        if name in files and (not halves or len(found) < len(halves)):
            found = [Part(files[name], task, turn, len(tasks)) for turn, task in enumerate(tasks)]
        parts += found
    if not parts:
        raise DataError(f"{folder}: no data set of E5 is there. Expected files such as {', '.join(_examples())}.")
    return parts


def left_out(folder: Path, parts: list[Part]) -> list[str]:
    """The names of files that hold rows, but are none of the parts."""
    read = {part.path for part in parts}
    return sorted(path.name for path in folder.iterdir() if path.name.endswith(SUFFIXES) and path not in read)


def _files(folder: Path) -> dict[str, Path]:
    """The files by the names of their data sets."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.endswith(SUFFIXES) and path.is_file():
            found.setdefault(path.name.split(".")[0], path)
    return found


def _examples() -> list[str]:
    return [f"{name}{SUFFIXES[0]}" for name in list(SETS)[:3]]
