"""Mining: what is found is what a plain search finds, by the encoder's own vectors; what it gives is read back."""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bothways import Encoder, convert
from bothways.corpus import Mine, mine, write_examples
from bothways.data import Example, read_examples
from bothways.errors import ConfigError, DataError

pytest.importorskip("sentence_transformers")
pytest.importorskip("datasets")
pytestmark = pytest.mark.filterwarnings("ignore:.*were cut")

FIND = "Given the start of a paragraph, find the rest"


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return convert("embedded", dtype="float32", device="cpu", prompts={"query": "search: ", "document": "text: "})


@pytest.fixture(scope="module")
def documents(real_texts: list[str]) -> list[str]:
    """No two of them begin alike."""
    return list({text[:25]: text for text in real_texts if len(text) < 120}.values())[:43]


def examples(documents: list[str], instruction: str | None = None) -> list[Example]:
    return [Example(text[:25], text, (), instruction) for text in documents[:7]]


def searched(encoder: Encoder, rows: list[Example], documents: list[str], settings: Mine) -> list[list[str]]:
    """The negatives of each row by a plain search: cosines, limits, ranks."""
    found = []
    candidates = list(dict.fromkeys([*documents, *(row.positive for row in rows)]))
    vectors = encoder.encode_document(candidates)
    for row in rows:
        led = row.query_instruction
        query = encoder.encode(row.query, instruction=led) if led else encoder.encode_query(row.query)
        mates = {other.positive for other in rows if (other.query, other.query_instruction) == (row.query, led)}
        cosines = dict(zip(candidates, vectors @ query, strict=True))
        least = min(cosines[positive] for positive in mates)
        allowed = [
            text
            for text in sorted(candidates, key=lambda text: -cosines[text])
            if text not in mates
            and text != row.query
            and (settings.max_score is None or cosines[text] <= settings.max_score)
            and (settings.min_score is None or cosines[text] >= settings.min_score)
            and (settings.absolute_margin is None or cosines[text] + settings.absolute_margin <= least)
            and (settings.relative_margin is None or cosines[text] <= least - abs(least) * settings.relative_margin)
        ]
        found.append(allowed[settings.range_min :][: settings.num_negatives])
    return found


@pytest.mark.parametrize(
    "settings",
    [
        Mine(),
        Mine(num_negatives=5, range_min=4),
        Mine(num_negatives=2, range_min=1, range_max=3, tokens_per_batch=50),
        Mine(max_score=0.7, range_max=43),
        Mine(min_score=0.75, num_negatives=9, range_max=43),
        Mine(absolute_margin=0.1, range_max=43),
        Mine(relative_margin=0.15, num_negatives=4, range_max=43),
    ],
    ids=str,
)
@pytest.mark.parametrize("instruction", [None, FIND])
def test_it_finds_what_a_plain_search_finds(
    settings: Mine, instruction: str | None, encoder: Encoder, documents: list[str]
) -> None:
    rows = examples(documents, instruction)
    mined = mine(encoder, rows, documents, settings)
    expected = searched(encoder, rows, documents, settings)
    assert [list(row.negatives) for row in mined.examples] == expected
    assert [(row.query, row.positive, row.query_instruction) for row in mined.examples] == [
        (row.query, row.positive, instruction) for row in rows
    ]
    assert (mined.queries, mined.candidates, mined.negatives) == (7, 43, sum(map(len, expected)))
    assert mined.bare == sum(not texts for texts in expected)
    assert mined.short == sum(0 < len(texts) < settings.num_negatives for texts in expected)


def test_the_limits_of_the_test_above_do_limit(encoder: Encoder, documents: list[str]) -> None:
    free = mine(encoder, examples(documents), documents, Mine(num_negatives=4)).examples
    for limit in (Mine(relative_margin=0.15, num_negatives=4, range_max=43), Mine(num_negatives=4, max_score=0.7)):
        assert mine(encoder, examples(documents), documents, limit).examples != free


def test_the_stock_model_of_the_encoder_finds_the_same(encoder: Encoder, documents: list[str]) -> None:
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    rows = examples(documents)
    pairs = Dataset.from_dict({"query": [row.query for row in rows], "positive": [row.positive for row in rows]})
    stock = mine_hard_negatives(
        pairs,
        encoder.to_sentence_transformer(),
        corpus=documents,
        num_negatives=3,
        output_format="n-tuple",
        verbose=False,
    )
    mined = mine(encoder, rows, documents)
    assert [tuple(row[f"negative_{i}"] for i in (1, 2, 3)) for row in stock] == [
        row.negatives for row in mined.examples
    ]


def test_an_instruction_is_part_of_the_query(encoder: Encoder, documents: list[str]) -> None:
    """Both ways of asking stand in one set of rows, and each finds what it finds alone."""
    plain, led = examples(documents), examples(documents, FIND)
    mixed = [row for pair in zip(plain, led, strict=True) for row in pair]
    mined = mine(encoder, mixed, documents).examples
    assert mined[::2] == mine(encoder, plain, documents).examples
    assert mined[1::2] == mine(encoder, led, documents).examples
    assert mined[::2] != mined[1::2]


def test_documents_have_their_instruction_too(encoder: Encoder, documents: list[str]) -> None:
    rows = [Example(row.query, row.positive, (), None, "a paragraph of a manual:") for row in examples(documents)]
    mined = mine(encoder, rows, documents)
    vectors = encoder.encode(documents, instruction="a paragraph of a manual:")
    for row in mined.examples:
        order = np.argsort(-(vectors @ encoder.encode_query(row.query)))
        nearest = [documents[number] for number in order if documents[number] != row.positive]
        assert list(row.negatives) == nearest[:3]
    mixed = [*rows, *examples(documents)]
    with pytest.raises(DataError, match=r"'a paragraph of a manual:' and None stand in one set of rows.* by itself"):
        mine(encoder, mixed, documents)


def test_neither_a_positive_nor_the_query_itself_is_ever_a_negative(encoder: Encoder, documents: list[str]) -> None:
    query, *others = documents[:9]
    rows = [Example(query, other) for other in others[:4]] + [Example(others[0], others[1])]
    mined = mine(encoder, rows, documents[:9], Mine(num_negatives=9))
    for row in mined.examples[:4]:
        assert sorted(row.negatives) == sorted(others[4:])
    assert sorted(mined.examples[4].negatives) == sorted({*documents[:9]} - {others[0], others[1]})
    assert (mined.queries, mined.short, mined.bare, mined.negatives) == (2, 2, 0, 4 + 7)


def test_negatives_that_are_there_stay_in_front(encoder: Encoder, documents: list[str]) -> None:
    (found,) = mine(encoder, examples(documents)[:1], documents).examples
    row = Example(found.query, found.positive, ("by hand", found.negatives[1]))
    (again,) = mine(encoder, [row], documents).examples
    assert again.negatives == ("by hand", found.negatives[1], found.negatives[0], found.negatives[2])


def test_without_a_corpus_the_positives_are_searched_and_none_may_be_found(
    encoder: Encoder, documents: list[str]
) -> None:
    rows = examples(documents)
    mined = mine(encoder, rows)
    assert mined.candidates == 7
    assert all(set(row.negatives) <= {other.positive for other in rows} for row in mined.examples)
    assert mined.cosines is not None
    assert mined.cosines[0] > mined.cosines[1]
    lonely = mine(encoder, rows[:1])
    assert lonely.examples == rows[:1]
    assert (lonely.negatives, lonely.bare, lonely.cosines) == (0, 1, None)


@pytest.mark.usefixtures("unchecked")
def test_random_ones_follow_the_seed_alone(encoder: Encoder, documents: list[str]) -> None:
    """Without beartype, which looks at items that it draws from the same generator."""

    def draw(seed: int) -> list[Example]:
        settings = Mine(sampling="random", range_max=20, seed=seed)
        return mine(encoder, examples(documents), documents, settings).examples

    before = random.getstate()
    first = draw(3)
    assert random.getstate() == before
    random.random()
    assert draw(3) == first
    assert draw(4) != first


def test_what_is_written_is_read_back(encoder: Encoder, documents: list[str], tmp_path: Path) -> None:
    rows = [*examples(documents), *examples(documents, FIND), Example("ünbare?", "nothing", (), None, None)]
    path = tmp_path / "new" / "triplets.jsonl"
    write_examples(rows, path)
    assert list(read_examples(path)) == rows
    assert [item.name for item in path.parent.iterdir()] == ["triplets.jsonl"]
    with pytest.raises(ConfigError, match=r"triplets\.jsonl exists\. Name another file, or delete it: nothing is over"):
        write_examples(rows, path)


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_examples([Example("q", {1, 2})], tmp_path / "a.jsonl")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["sentence_transformers", "datasets"])
def test_what_is_missing_is_said(package: str, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    if package == "sentence_transformers":
        monkeypatch.setitem(sys.modules, "sentence_transformers.util", None)
    with pytest.raises(ConfigError, match=rf"mine: {package}.* is not installed; .*pip install 'bothways\[eval,hub\]'"):
        mine(encoder, [Example("q", "p")])


def test_no_example_is_refused(encoder: Encoder) -> None:
    with pytest.raises(DataError, match=r"mine: no example\. Give rows with a query and its positive"):
        mine(encoder, [])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_negatives": 0}, "Mine(num_negatives=0): expected 1 or more."),
        ({"tokens_per_batch": 0}, "Mine(tokens_per_batch=0): expected 1 or more."),
        ({"range_min": -1}, "Mine(range_min=-1): expected 0 or more."),
        ({"range_min": 5, "range_max": 7}, "Mine(range_min=5, range_max=7): 2 ranks are left for num_negatives=3. Use"),
        ({"max_score": 1.5}, "Mine(max_score=1.5): expected a cosine, from -1 to 1."),
        ({"min_score": -3.0}, "Mine(min_score=-3): expected a cosine"),
        ({"absolute_margin": -0.1}, "Mine(absolute_margin=-0.1): expected 0 or more."),
        ({"relative_margin": -0.1}, "Mine(relative_margin=-0.1): expected 0 or more."),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Mine(**settings)
