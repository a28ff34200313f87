"""The tables of docs/performance.md: one step beside its peers, its parts, and its floor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.beside import OURS
from bothways.evaluation.tables import Row, markdown

Found = Mapping[str, Any]


def steps(found: Found) -> str:
    """Seconds and memory of a step, and how many times as much the peers take; texts of mixed lengths are counted."""
    rows: list[dict[str, Any]] = []
    names = peers(found)
    for condition, figures in found["observed"].items():
        row: dict[str, Any] = {"condition": condition}
        if "padding" in figures:
            row |= {"tokens": f"{figures['tokens']:,}", "padding": f"{figures['padding']:.2f}x"}
        for title, key, unit in (("seconds", "seconds", 1), ("GiB", "memory", 2**30)):
            ours = figures[key][OURS]
            taken = {name.split(",")[0]: value for name, value in figures[key].items()}
            row[f"{title}, {OURS}"] = f"{ours / unit:.2f}"
            for peer in names:
                value = taken.get(peer)
                row[f"{title}, {peer}"] = None if value is None else f"{value / unit:.2f} ({value / ours:.2f}x)"
        rows.append(row)
    return markdown(rows)


def peers(found: Found) -> list[str]:
    """Who was measured beside us."""
    names = (name.split(",")[0] for one in found["observed"].values() for name in one["seconds"])
    return sorted(set(names) - {OURS})


def attention(found: Found) -> str:
    """With which attention each peer was faster, and so is compared."""
    kept = {
        peer: sorted(
            {
                name.split(", ")[1]
                for one in found["observed"].values()
                for name in one["seconds"]
                if name.split(",")[0] == peer
            }
        )
        for peer in peers(found)
    }
    return "; ".join(f"{peer}: {' or '.join(kinds)}" for peer, kinds in kept.items())


def parts(found: Found) -> str:
    """Which share of one of our steps each part takes, and which share is multiplying in it."""
    table: dict[str, dict[str, str]] = {}
    for condition, figures in found["observed"].items():
        taken = figures["parts of a bothways step"]
        whole = sum(part["seconds"] for part in taken.values())
        for name, part in taken.items():
            cell = f"{part['seconds'] / whole:.1%} ({part['multiplying'] / whole:.1%})"
            table.setdefault(name, {"part": name})[condition] = cell
    return markdown(_filled(table, found))


def floor(found: Found) -> str:
    """Seconds of the matrix multiplications alone, and which share of a step they are."""
    table: dict[str, dict[str, str]] = {}
    for condition, figures in found["observed"].items():
        for name, seconds in figures["floor, seconds"].items():
            table.setdefault(name, {"floor": name})[condition] = f"{seconds:.2f} s"
        table.setdefault("all", {"floor": "all"})[condition] = f"{sum(figures['floor, seconds'].values()):.2f} s"
        for title, key in (("share of a step", "share of the floor"), ("share of the rate", "share of that rate")):
            for name, share in figures[key].items():
                label = f"{title}, {name.split(',')[0]}"
                table.setdefault(label, {"floor": label})[condition] = f"{share:.0%}"
    return markdown(_filled(table, found))


def _filled(table: Mapping[str, Mapping[str, str]], found: Found) -> list[Row]:
    first = next(iter(next(iter(table.values()))))
    return [{first: row[first], **{name: row.get(name) for name in found["observed"]}} for row in table.values()]
