"""Which rows go through the model together: filled to a number of tokens, packed or padded."""

from __future__ import annotations

from collections.abc import Sequence

PADDING_SHARE = 1 / 64
"""Padding in one forward pass, as a share of its largest size, above which two passes are faster than one."""


def packs(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Positions grouped so that the tokens of a group stay within `tokens`, longest first; a longer row goes alone."""
    groups: list[list[int]] = []
    filled = 0
    for position in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        filled += lengths[position]
        if not groups or filled > tokens:
            groups.append([])
            filled = lengths[position]
        groups[-1].append(position)
    return groups


def buckets(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Positions grouped by length, longest first, so that rows x longest row stays within `tokens`.

    A group also ends where one more row would raise its padding above a sixty-fourth of that: another forward pass is
    then cheaper than the padding. A single row that is too long for the budget is a group of its own.
    """
    groups: list[list[int]] = []
    longest = padding = 0
    for position in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        padding += longest - lengths[position]
        full = not groups or (len(groups[-1]) + 1) * longest > tokens
        if full or padding > tokens * PADDING_SHARE:
            groups.append([])
            longest, padding = lengths[position], 0
        groups[-1].append(position)
    return groups
