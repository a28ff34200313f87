"""The tables of docs/quality.md: scores after every stage, differences to the peers, the order of the stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.quality.settings import LLM2VEC, OURS, ST
from benchmarks.quality.summary import MEAN
from bothways.evaluation.tables import markdown

Found = Mapping[str, Any]


def scores(found: Found) -> str:
    """Mean, and standard deviation over the seeds, of every line; times 100."""
    parts = []
    for decoder, lines in found["observed"]["mean and standard deviation over seeds"].items():
        rows = [
            {decoder: name, **{task: _cell(values) for task, values in tasks.items()}} for name, tasks in lines.items()
        ]
        parts.append(markdown(rows))
    return "\n".join(parts)


def differences(found: Found) -> str:
    """Ours minus each peer's after the same stage, with the interval."""
    rows = []
    for peer in (LLM2VEC, ST):
        for stage, decoders in found["observed"][f"{OURS} minus {peer}"].items():
            row = {f"{OURS} minus": peer, "after": stage}
            rows.append({**row, **{name: _interval(value) for name, value in decoders.items()}})
    return markdown(rows)


def order(found: Found) -> str:
    """Each step of the paper's order, with the interval, and whether all of them rise."""
    told = found["observed"]["order of the stages"]
    rows = [
        {"step": name, **{decoder: _interval(value) for decoder, value in decoders.items()}}
        for name, decoders in told["steps"].items()
    ]
    held = [
        f"{decoder}: the order {'holds' if value['holds'] else '**does not hold**'}"
        for decoder, value in told.items()
        if decoder not in ("expected", "steps")
    ]
    return f"{markdown(rows)}\nOn the mean of the tasks, {'; '.join(held)}.\n"


def settings(found: Found) -> str:
    """What was chosen on the dev splits."""
    rows = [
        {"decoder": decoder, "side": side, **{stage: _told(values) for stage, values in stages.items()}}
        for decoder, sides in found["observed"]["choice of settings"]["chosen"].items()
        for side, stages in sides.items()
    ]
    return markdown(rows) if rows else "Nothing was chosen: defaults.\n"


def _told(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in values.items())


def _cell(values: list[float]) -> str:
    return " ± ".join(f"{100 * value:.1f}" for value in values)


def _interval(value: Mapping[str, Any]) -> str:
    low, high = value["interval"]
    return f"{100 * value[MEAN]:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
