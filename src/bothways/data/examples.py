"""What one row of supervised training means, by whichever of the usual names its columns go."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from bothways.data.rows import (
    Cells,
    Example,
    RowError,
    checked,
    field_text,
    kind_of,
    optional_field,
    present,
    quoted,
    row_field,
    titled_text,
)

QUERY = ("query", "anchor", "question")
POSITIVE = ("positive", "pos", "positives", "positive_passages")
NEGATIVE = ("negatives", "negative", "neg", "negs", "negative_passages")
NUMBERED = re.compile(r"negative_(0|[1-9]\d*)")
QUERY_INSTRUCTION = ("query_instruction", "instruction", "prompt")
DOCUMENT_INSTRUCTION = ("document_instruction",)
SCORE = ("score", "label", "similarity")
PAIRS = {
    **dict.fromkeys(QUERY, "answer"),
    "sentence1": "sentence2",
    "text1": "text2",
    "s1": "s2",
    "premise": "hypothesis",
}
"""Of rows without a positive: the name of the one text, and that of the text that belongs to it."""


def row_examples(
    row: Any,
    *,
    query_instruction: str | None = None,
    document_instruction: str | None = None,
    score_max: float = 1.0,
) -> list[Example]:
    """The examples of a row: one for each of its positives. The instructions are for a row that brings none.

    Raises RowError.
    """
    query, positives = _sides(row)
    score = _score(row, score_max)
    if score is not None and len(positives) > 1:
        raise RowError(f"it has one score and {len(positives)} positives. Give each a row of its own.")
    negatives = _negatives(row)
    of_query = _instruction(row, QUERY_INSTRUCTION) or query_instruction
    of_documents = _instruction(row, DOCUMENT_INSTRUCTION) or document_instruction
    return [Example(query, positive, negatives, of_query, of_documents, score) for positive in positives]


def _sides(row: Any) -> tuple[str, tuple[str, ...]]:
    """The query, and the texts that answer it."""
    if not present(row, POSITIVE):
        first = present(row, PAIRS)
        second = PAIRS.get(first, "")
        if second in row:
            if first == "premise" and "label" in row:
                raise RowError(
                    '"premise" and "hypothesis" are a pair only where one follows from the other, and "label" leaves '
                    'that open. Keep the rows that entail, without "label", or name the columns anchor, positive and '
                    "negative."
                )
            return field_text(row, first), _documents(row[second], second)
    query = field_text(row, *QUERY)
    name, found = row_field(row, *POSITIVE)
    positives = _documents(found, name)
    if not positives:
        raise RowError(f'"{name}" is an empty list.')
    return query, positives


def _negatives(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Those under one name, or one by one under negative_1, negative_2, ..., of which the last may be absent."""
    name, found = optional_field(row, *NEGATIVE)
    names = {int(match[1]): key for key in row if (match := NUMBERED.fullmatch(key))}
    if not names:
        return () if found is None else _documents(found, name)
    if name:
        raise RowError(f"{' and '.join(quoted([name, names[min(names)]]))} mean the same; the row has both.")
    values = {number: value for number in sorted(names) if (value := optional_field(row, names[number])[1]) is not None}
    for place, number in enumerate(values, start=min(1, *values) if values else 1):
        if place != number:
            raise RowError(
                f'"negative_{place}" is missing; the row has "negative_{number}". Number them without a gap.'
            )
    return tuple(_document(value, names[number]) for number, value in values.items())


def _instruction(row: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    name, found = optional_field(row, *names)
    return None if found is None else checked(found, name)


def _score(row: Mapping[str, Any], most: float) -> float | None:
    """The score of a graded pair, divided by `most`."""
    name, found = optional_field(row, *SCORE)
    if found is None:
        return None
    score: Any = _number(found) if isinstance(row, Cells) else found
    if isinstance(score, bool) or not isinstance(score, int | float) or math.isnan(score):
        shown = f'"{found}"' if isinstance(found, str) else "not a number" if score is not found else kind_of(found)
        raise RowError(f'"{name}" is {shown}, expected a number from 0 to {most:g}. Rename what is no score.')
    if not 0 <= score <= most:
        raise RowError(
            f'"{name}" is {score:g}, expected 0 to {most:g}. Say with score_max what the scores of this source end at '
            "(5 for STS)."
        )
    return score / most


def _number(cell: str) -> float | str:
    try:
        return float(cell)
    except ValueError:
        return cell


def _documents(value: Any, name: str) -> tuple[str, ...]:
    if isinstance(value, list):
        return tuple(_document(item, name) for item in value)
    return (_document(value, name),)


def _document(value: Any, name: str) -> str:
    """A text, or an object with "text" and perhaps "title"."""
    if not isinstance(value, Mapping):
        return checked(value, name)
    if "text" not in value:
        raise RowError(f'"{name}" is an object without "text".')
    try:
        return titled_text(value)
    except RowError as problem:
        raise RowError(f'in "{name}", {problem}') from None
