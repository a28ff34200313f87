"""Hard negatives: documents that look like answers to a query and are not, found by sentence-transformers' miner."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from bothways.data import Example
from bothways.errors import ConfigError, DataError
from bothways.folders import new_file

Vectors = Float[NDArray[np.float32], "texts dim"]


@dataclass(frozen=True, kw_only=True)
class Mine:
    """Which documents become negatives of a query. Ranks count what neither is its positive nor breaks a limit."""

    num_negatives: int = 3
    """Negatives of each query, at most."""
    range_min: int = 0
    """So many of the nearest documents are passed over: among them are answers that nobody marked."""
    range_max: int | None = None
    """The last rank that may be a negative; None: as many as are needed, ten times that where scores are limited."""
    max_score: float | None = None
    """Cosine to the query above which a document is no negative."""
    min_score: float | None = None
    """Cosine below which it is too easy."""
    absolute_margin: float | None = None
    """So far below the least similar positive's cosine a negative stands, at least."""
    relative_margin: float | None = None
    """The same as a share of that cosine; 0.05 is NV-Retriever's best (arXiv 2407.15831)."""
    sampling: Literal["top", "random"] = "top"
    """top: the nearest that are allowed; random: any of those up to range_max."""
    tokens_per_batch: int | None = None
    """Tokens that go through the model at once; None: what is fast on the device. Changes speed and memory."""
    seed: int = 0
    """Of sampling="random"."""

    def __post_init__(self) -> None:
        for name in ("num_negatives", "tokens_per_batch"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"Mine({name}={value}): expected 1 or more.")
        if self.range_min < 0:
            raise ConfigError(f"Mine(range_min={self.range_min}): expected 0 or more.")
        if self.range_max is not None and self.range_max - self.range_min < self.num_negatives:
            raise ConfigError(
                f"Mine(range_min={self.range_min}, range_max={self.range_max}): {self.range_max - self.range_min} ranks"
                f" are left for num_negatives={self.num_negatives}. Use a larger range_max."
            )
        for name in ("max_score", "min_score"):
            value = getattr(self, name)
            if value is not None and not -1 <= value <= 1:
                raise ConfigError(f"Mine({name}={value:g}): expected a cosine, from -1 to 1.")
        for name in ("absolute_margin", "relative_margin"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ConfigError(f"Mine({name}={value:g}): expected 0 or more.")


@dataclass(frozen=True)
class Mined:
    """The examples with what was found, and what that was."""

    examples: list[Example]
    queries: int
    """Different queries; with another instruction it is another one."""
    candidates: int
    """Different documents that were compared with each of them."""
    negatives: int
    """How many were found, over all queries."""
    short: int
    """Queries with some, but fewer than were asked for."""
    bare: int
    """Queries with none."""
    cosines: tuple[float, float] | None
    """Means of the queries with their positives, and with their negatives; None if none was found."""


@runtime_checkable
class EncodesBothSides(Protocol):
    """What is asked of an encoder here; `Encoder` has it."""

    @property
    def device(self) -> Any: ...

    def encode(
        self, texts: Sequence[str], /, *, instruction: Any, tokens_per_batch: int | None, show_progress: bool
    ) -> Any: ...

    def encode_query(self, texts: Sequence[str], /, *, tokens_per_batch: int | None, show_progress: bool) -> Any: ...

    def encode_document(self, texts: Sequence[str], /, *, tokens_per_batch: int | None, show_progress: bool) -> Any: ...


def mine(
    encoder: EncodesBothSides,
    examples: Sequence[Example],
    documents: Sequence[str] = (),
    settings: Mine | None = None,
    *,
    show_progress: bool = False,
) -> Mined:
    """Give every example hard negatives out of `documents` and all positives, behind those it has.

    No positive of a query is its negative, nor is its own text. Queries are encoded with their instruction, those that
    have none with the stored prompt "query"; documents likewise. An example for which none is found stays as it was.
    Vectors are the encoder's own, so that what a stock loader opens causal is mined right too.

    Raises ConfigError if sentence-transformers or datasets is not installed, DataError if there is no example, or the
    document instructions are not all the same.
    Source: `sentence_transformers.util.mine_hard_negatives`.
    """
    settings = Mine() if settings is None else settings
    miner = _miner()
    if not examples:
        raise DataError("mine: no example. Give rows with a query and its positive.")
    instruction = _document_instruction(examples)
    asked = {_key(example): (example.query, example.query_instruction) for example in examples}
    pairs = list(dict.fromkeys((_key(example), example.positive) for example in examples))
    candidates = dict.fromkeys([*documents, *(positive for _, positive in pairs)])
    # As a positive that leads to no row: where queries are documents too, each finds itself first.
    itself = [(key, query) for key, (query, _) in asked.items() if query in candidates]
    columns = zip(*dict.fromkeys([*pairs, *itself]), strict=True)
    how = {"tokens_per_batch": settings.tokens_per_batch, "show_progress": show_progress}
    with _seeded(settings.seed):
        mined = miner(
            _dataset(dict(zip(("anchor", "positive"), map(list, columns), strict=True))),
            _AsTheMinerCalls(encoder, asked, instruction, how),
            corpus=list(candidates),
            **{
                name: value
                for name, value in asdict(settings).items()
                if name not in ("sampling", "seed", "tokens_per_batch")
            },
            sampling_strategy=settings.sampling,
            output_format="labeled-list",
            output_scores=True,
            verbose=False,
        )
        rows: list[dict[str, Any]] = mined.to_list()
    # One row for each positive, all of a query with the same negatives behind it.
    found = {row["anchor"]: row["positive"][1:] for row in rows}
    real = set(pairs)
    scores = [row["scores"] for row in rows if (row["anchor"], row["positive"][0]) in real]
    return Mined(
        examples=[_with(example, found.get(_key(example), [])) for example in examples],
        queries=len(asked),
        candidates=len(candidates),
        negatives=sum(map(len, found.values())),
        short=sum(len(texts) < settings.num_negatives for texts in found.values()),
        bare=len(asked) - len(found),
        cosines=_means(scores),
    )


def write_examples(examples: Sequence[Example], path: str | Path) -> None:
    """Write examples as `read_examples` reads them, one JSON object a line; the file appears whole or not at all.

    Raises ConfigError if there is such a file already.
    """
    with new_file(Path(path)) as file:
        for example in examples:
            row = {name: value for name, value in asdict(example).items() if value not in (None, ())}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


class _AsTheMinerCalls:
    """What the miner asks of a SentenceTransformer, answered by the encoder; queries come as keys of `asked`."""

    def __init__(
        self,
        encoder: EncodesBothSides,
        asked: Mapping[str, tuple[str, str | None]],
        document_instruction: str | None,
        how: Mapping[str, Any],
    ) -> None:
        from sentence_transformers.util import cos_sim, pairwise_cos_sim

        self.encoder, self.asked, self.document_instruction = encoder, asked, document_instruction
        self.how, self.device = how, encoder.device
        self.similarity, self.similarity_pairwise = cos_sim, pairwise_cos_sim

    def encode_query(self, keys: list[str], **_: Any) -> Vectors:
        plain = [number for number, key in enumerate(keys) if self.asked[key][1] is None]
        led = [number for number, key in enumerate(keys) if self.asked[key][1] is not None]
        parts = []
        if plain:
            parts.append(self.encoder.encode_query([self.asked[keys[number]][0] for number in plain], **self.how))
        if led:
            texts, instructions = zip(*(self.asked[keys[number]] for number in led), strict=True)
            parts.append(self.encoder.encode(list(texts), instruction=list(instructions), **self.how))
        return _unit(np.concatenate(parts)[np.argsort([*plain, *led])])

    def encode_document(self, texts: list[str], **_: Any) -> Vectors:
        if self.document_instruction is None:
            return _unit(self.encoder.encode_document(texts, **self.how))
        return _unit(self.encoder.encode(texts, instruction=self.document_instruction, **self.how))


def _unit(vectors: Vectors) -> Vectors:
    """Of unit length: the miner's margins are cosines, whatever the encoder's vectors are."""
    unit: Vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit


def _miner() -> Any:
    try:
        import datasets  # noqa: F401 (the miner's own error names no extra)
        from sentence_transformers.util import mine_hard_negatives
    except ImportError as problem:
        raise ConfigError(
            f"mine: {problem.name} is not installed; the miner is sentence-transformers' and works on data sets. "
            "Install both: pip install 'bothways[eval,hub]'."
        ) from None
    return mine_hard_negatives


def _dataset(columns: Mapping[str, list[str]]) -> Any:
    from datasets import Dataset

    return Dataset.from_dict(columns)


def _key(example: Example) -> str:
    """What the miner takes for the query: it knows one instruction for all."""
    return json.dumps([example.query, example.query_instruction])


def _document_instruction(examples: Sequence[Example]) -> str | None:
    given = list(dict.fromkeys(example.document_instruction for example in examples))
    if len(given) > 1:
        first, second = given[:2]
        raise DataError(
            f"mine: the document instructions {first!r} and {second!r} stand in one set of rows, and a document of the "
            "corpus is encoded once. Mine each set by itself."
        )
    return given[0]


def _with(example: Example, found: Sequence[str]) -> Example:
    return replace(example, negatives=tuple(dict.fromkeys([*example.negatives, *found])))


def _means(scores: Sequence[Sequence[float]]) -> tuple[float, float] | None:
    if not scores:
        return None
    return float(np.mean([row[0] for row in scores])), float(np.mean([one for row in scores for one in row[1:]]))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The miner draws from Python's own generator, which is put back."""
    before = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)
