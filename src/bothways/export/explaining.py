"""What vectors are that are neither reference: pooled in another way, without the prompt, or not of unit length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bothways.export.judging import Judge
from bothways.export.references import Asked, Way

UNIT = 1e-2
"""How far from 1 the length of a vector may be that was scaled to unit length in half precision."""
POOLED = {
    "mean": "mean pooling",
    "weighted_mean": "pooling by a weighted mean",
    "last": "last-token pooling",
    "cls": "first-token pooling",
}


def explained(
    judge: Judge,
    found: np.ndarray,
    asked: Sequence[Asked],
    prompted: Mapping[Way, np.ndarray],
    bare: Mapping[Way, np.ndarray],
    own: Way,
) -> list[str]:
    """What unit vectors (texts, dim) are, if one way of making them accounts for all of them; else nothing.

    `prompted` and `bare` are the references with and without the prompts of what was asked; `own` is the folder's way.
    """
    ways = []
    for way in prompted:
        dropped, distance = _dropped(judge, found, asked, prompted[way], bare[way])
        if distance is not None:
            ways.append((distance, way, dropped))
    if not ways:
        return []
    _, way, dropped = min(ways, key=lambda entry: entry[0])
    said = []
    if (way.pooling, way.pool_over) != (own.pooling, own.pool_over):
        said.append(f"Its vectors are the {way.direction} ones of {_name(way)}, where the folder has {_name(own)}")
    elif dropped:
        said.append(f"Apart from the prompt they are the {way.direction} vectors")
    said += [f'The prompt "{name}" is dropped: these are the vectors of the texts without it' for name in dropped]
    return said


def lengths(found: np.ndarray, reference: np.ndarray, *, normalize: bool) -> tuple[list[str], list[str]]:
    """Faults and notes about the lengths of vectors (texts, dim), beside those of the folder's own way."""
    norms, own = np.linalg.norm(found, axis=1), np.linalg.norm(reference, axis=1)
    measured = f"from {norms.min():.3g} to {norms.max():.3g}"
    if normalize:
        if np.abs(norms - 1).max() <= UNIT:
            return [], []
        return [
            f"Its vectors are not of unit length (their lengths go {measured}), where the folder's are: dot products "
            "rank otherwise than cosines"
        ], []
    if np.abs(norms / own - 1).max() <= 5 * UNIT:
        return [], []
    return [], [f"the lengths of its vectors go {measured}, the folder's from {own.min():.3g} to {own.max():.3g}"]


def _dropped(
    judge: Judge, found: np.ndarray, asked: Sequence[Asked], prompted: np.ndarray, bare: np.ndarray
) -> tuple[list[str], float | None]:
    """The prompts that are left out if vectors are of one way, and the distance to that; None if they are not of it."""
    names = dict.fromkeys(one.prompt for one in asked)
    dropped, total = [], 0.0
    for name in names:
        rows = np.array([one.prompt == name for one in asked])
        with_it = judge.distances(found[rows], prompted[rows])
        without = judge.distances(found[rows], bare[rows])
        chosen = min((with_it, without), key=lambda distances: float(distances.distance.sum()))
        if not chosen.near.all():
            return [], None
        if chosen is without and name is not None:
            dropped.append(name)
        total += float(chosen.distance.sum())
    return dropped, total


def _name(way: Way) -> str:
    return POOLED[way.pooling] + (" over all tokens" if way.pool_over == "all" else " over the text's own tokens")
