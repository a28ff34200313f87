"""Docstrings -> what the demo learns from and what it is judged by, with nothing in common.

Modules are split by the hash of their names: for the test, to choose the recipe on (dev), and the rest to train on.
A pair is (first sentence, rest of the docstring), and the task is to find the rest by the first sentence.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from bothways.data import Document, Example
from bothways.demo.documentation import PACKAGES, Docstring
from bothways.evaluation import Retrieval

Half = Literal["train", "dev", "test"]

TEST_SHARE, DEV_SHARE = 8, 5
"""Modules in a hundred."""
MOST_EVALUATED = 1000
"""Pairs of the test, so that evaluation stays quick."""
MOST_TEXTS = 6000
"""Unlabelled texts: several times what the demo's two unsupervised stages have time for."""
SUMMARY_WORDS = range(4, 33)
"""Words of a summary that asks for something in particular."""
FEWEST_BODY_WORDS, MOST_BODY_WORDS = 8, 80
"""Words of the rest; what is longer is cut, for every encoder and for tf-idf alike."""
SHINGLE, SKETCH, SHARED = 4, 8, 4
"""Two texts are nearly the same if 4 of the 8 smallest hashes of their runs of four words are."""
RUN, FIRST = 12, SUMMARY_WORDS.start
"""An evaluated text is cut into runs of 12 words; no training text may hold one. They are looked up by 4 words."""


@dataclass(frozen=True)
class Pair:
    """The first sentence of the docstring of `name`, and the rest."""

    name: str
    summary: str
    body: str


@dataclass(frozen=True)
class Documentation:
    """Training halves, and the two tasks that share no module and no text with them."""

    texts: list[str]
    pairs: list[Pair]
    dev: Retrieval
    test: Retrieval
    library: list[Document]
    """The standard library's, of every half, to ask questions of: what is found there is no measure of anything."""

    def examples(self) -> list[Example]:
        """The training pairs as the supervised stage takes them."""
        return [Example(pair.summary, pair.body) for pair in self.pairs]


def split(docstrings: Sequence[Docstring], topics: Sequence[str] = ()) -> Documentation:
    """Distinct pairs by module, and texts that repeat nothing of an evaluated one as unlabelled text.

    Only what is public is evaluated and asked for; what is private serves the training half, as do pydoc's `topics`.
    """
    # Evaluated modules come first, so that of two near copies the one in the training half is dropped.
    order: dict[Half, int] = {"test": 0, "dev": 1, "train": 2}
    usable = (docstring for docstring in docstrings if docstring.public or half(docstring.module) == "train")
    ordered = sorted(usable, key=lambda docstring: order[half(docstring.module)])
    pairs: dict[Half, list[Pair]] = {"train": [], "dev": [], "test": []}
    library = []
    for docstring in _distinct(ordered):
        body = " ".join(docstring.body.split()[:MOST_BODY_WORDS])
        pairs[half(docstring.module)].append(Pair(docstring.name, docstring.summary, body))
        if docstring.public and docstring.module.split(".")[0] not in PACKAGES:
            library.append(Document(docstring.name, f"{docstring.summary} {body}"))
    dev, test = _some(pairs["dev"]), _some(pairs["test"])
    held_out = [text for pair in (*dev, *test) for text in (pair.summary, pair.body)]
    clean = Clean(held_out)
    train = [pair for pair in pairs["train"] if clean(pair.summary) and clean(pair.body)]
    whole = (f"{d.summary} {d.body}" for d in ordered if half(d.module) == "train")
    shuffled = sorted(dict.fromkeys((*whole, *topics)), key=_hash)
    texts = islice((text for text in shuffled if len(words(text)) >= RUN and clean(text)), MOST_TEXTS)
    return Documentation(list(texts), train, _task("dev", dev), _task("test", test), library)


def half(module: str) -> Half:
    """Where everything of a module goes. It depends on the module's name alone."""
    place = int(hashlib.sha256(module.encode()).hexdigest(), 16) % 100
    return "test" if place < TEST_SHARE else "dev" if place < TEST_SHARE + DEV_SHARE else "train"


def words(text: str) -> list[str]:
    """Lower-case letters and digits: what two spellings of the same text have in common."""
    return re.findall(r"[a-z0-9]+", text.lower())


def _distinct(docstrings: Iterable[Docstring]) -> Iterator[Docstring]:
    """Docstrings that make a pair: long enough, no summary twice, no body near another or with its summary in it."""
    summaries: set[str] = set()
    holders: defaultdict[int, list[int]] = defaultdict(list)
    for place, docstring in enumerate(docstrings):
        summary, body = words(docstring.summary), words(docstring.body)[:MOST_BODY_WORDS]
        spelled = " ".join(summary)
        if len(summary) not in SUMMARY_WORDS or len(body) < FEWEST_BODY_WORDS:
            continue
        if spelled in summaries or spelled in " ".join(body):
            continue
        sketch = _sketch(body)
        near = Counter(holder for key in sketch for holder in holders[key])
        if near and near.most_common(1)[0][1] >= SHARED:
            continue
        summaries.add(spelled)
        for key in sketch:
            holders[key].append(place)
        yield docstring


def _sketch(body: list[str]) -> list[int]:
    runs = {" ".join(body[start : start + SHINGLE]) for start in range(len(body) - SHINGLE + 1)}
    return sorted(_hash(run) for run in runs)[:SKETCH]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def _some(pairs: list[Pair]) -> list[Pair]:
    """At most MOST_EVALUATED of them, the same ones whatever else is installed."""
    return sorted(pairs, key=lambda pair: _hash(pair.name))[:MOST_EVALUATED]


class Clean:
    """Tells whether a text holds no run of an evaluated one, and no evaluated text that is shorter than a run."""

    def __init__(self, evaluated: Iterable[str]) -> None:
        self.runs: defaultdict[tuple[str, ...], set[tuple[str, ...]]] = defaultdict(set)
        for text in evaluated:
            found = tuple(words(text))
            for start in range(0, max(1, len(found) - RUN + 1), RUN):
                run = found[start : start + RUN]
                self.runs[run[:FIRST]].add(run)

    def __call__(self, text: str) -> bool:
        found = tuple(words(text))
        for start in range(len(found) - FIRST + 1):
            for run in self.runs.get(found[start : start + FIRST], ()):
                if found[start : start + len(run)] == run:
                    return False
        return True


def _task(name: str, pairs: list[Pair]) -> Retrieval:
    return Retrieval(
        name,
        [Document(pair.name, pair.summary) for pair in pairs],
        [Document(pair.name, pair.body) for pair in pairs],
        {pair.name: {pair.name: 1} for pair in pairs},
    )
