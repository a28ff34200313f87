"""Property: no evaluated module and no evaluated text stands in the training half."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from bothways.demo.documentation import Docstring
from bothways.demo.pairs import RUN, Clean, Documentation, half, split, words

TOPIC = "A paragraph of the reference manual that is long enough to be worth reading twice, or three times."


@pytest.fixture(scope="module")
def documentation(library: Sequence[Docstring]) -> Documentation:
    return split(library, [TOPIC])


def spelled(texts: Sequence[str]) -> str:
    return "\n".join(f" {' '.join(words(text))} " for text in texts)


def test_no_evaluated_text_stands_in_the_training_half(documentation: Documentation) -> None:
    trained = spelled([*documentation.texts, *(text for p in documentation.pairs for text in (p.summary, p.body))])
    evaluated = [d.text for task in (documentation.dev, documentation.test) for d in (*task.queries, *task.documents)]
    assert len(evaluated) > 150
    for text in evaluated:
        found = words(text)
        for start in range(0, max(1, len(found) - RUN + 1), RUN):
            assert f" {' '.join(found[start : start + RUN])} " not in trained


def test_no_evaluated_module_was_trained_on(library: Sequence[Docstring], documentation: Documentation) -> None:
    module = {docstring.name: docstring.module for docstring in library}
    of = {
        "train": {module[pair.name] for pair in documentation.pairs},
        "dev": {module[query.id] for query in documentation.dev.queries},
        "test": {module[query.id] for query in documentation.test.queries},
    }
    assert not of["train"] & of["test"]
    assert not of["train"] & of["dev"]
    assert not of["dev"] & of["test"]
    for name, modules in of.items():
        assert modules
        assert {half(module) for module in modules} == {name}


def test_only_what_is_public_is_evaluated_and_asked_for(documentation: Documentation) -> None:
    asked = [*documentation.dev.queries, *documentation.test.queries, *documentation.library]
    assert not [document.id for document in asked if document.id.rpartition(".")[2].startswith("_")]
    assert any(pair.name.rpartition(".")[2].startswith("_") for pair in documentation.pairs)


def test_there_is_enough_of_everything(documentation: Documentation) -> None:
    assert len(documentation.pairs) > 500
    assert len(documentation.texts) > 1000
    assert TOPIC in documentation.texts
    assert len(documentation.library) > 500
    assert all(len(query.text.split()) >= 4 for query in documentation.test.queries)


def test_the_split_does_not_depend_on_chance(library: Sequence[Docstring], documentation: Documentation) -> None:
    again = split(library, [TOPIC])
    assert again == documentation
    shuffled = list(library)
    random.shuffle(shuffled)
    assert {query.id for query in split(shuffled).test.queries} & {query.id for query in again.test.queries}


def distinct(**bodies: str) -> list[str]:
    """Names of the docstrings that become pairs, out of name=body, each with a summary of its own."""
    found = split([Docstring(name, name, f"a summary that belongs to {name}", body) for name, body in bodies.items()])
    return sorted(
        [pair.name for pair in found.pairs] + [q.id for task in (found.dev, found.test) for q in task.queries]
    )


def numbered(count: int, prefix: str = "word") -> str:
    return " ".join(f"{prefix}{number}" for number in range(count))


def test_copies_near_copies_and_what_is_too_short_make_no_pair() -> None:
    body, other = numbered(30), numbered(30, "other")
    assert distinct(first=body, second=other) == ["first", "second"]
    assert len(distinct(first=body, copy=body)) == 1
    assert len(distinct(first=body, near=body + " and a little more")) == 1
    assert distinct(first=body, short="too few words") == ["first"]
    assert distinct(first=body, holds=f"{other} a summary that belongs to holds") == ["first"]


def test_clean_finds_a_run_wherever_it_stands() -> None:
    clean = Clean(["Read lines from a file.", numbered(25)])
    assert clean("something else entirely, and nothing more")
    assert clean("read lines from a")
    assert not clean("To read LINES from   a file, call this")
    assert not clean(f"before {numbered(12)}")
    assert clean(f"before {numbered(11)} after")
    assert not clean("before " + numbered(24).partition("word12 ")[1] + numbered(24).partition("word12 ")[2])
