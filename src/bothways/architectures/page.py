"""The answers as rows of a table, and as a page in Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from bothways.architectures.record import Answer, Architecture

CONFIG_FLAG = "config flag"
YES, NO, FAILED, NONE = "yes", "refused", "FAILED", ""

HOW = """\
Under each attention backend that the architecture has, `make_bidirectional` measures every sub-module that mixes
tokens, and refuses by name what it cannot prove. What it converts must then be blind to padding and, under the first
such backend, survive saving and loading, take a LoRA adapter and pass gradients to every mixing sub-module; one that
does not is a silent failure. The numbers are relative changes of the hidden states. Where texts can be packed into one
row without seeing one another, "packed" has the change that this makes under the worst backend; elsewhere training and
encoding compute padded rows of like length.
"""


def rows(found: Iterable[Architecture], backends: Sequence[str]) -> list[dict[str, str]]:
    """One row of text per architecture, in order of their names."""
    return [_row(one, backends) for one in sorted(found, key=lambda one: one.name)]


def summary(found: Sequence[Architecture]) -> str:
    """How many were measured, and how they came out, in one sentence."""
    bidirectional = sum(one.bidirectional for one in found)
    unbuilt = sum(bool(one.unbuilt) for one in found)
    refused = len(found) - bidirectional - unbuilt
    failures = sum(len(one.failures) for one in found)
    return (
        f"{len(found)} entries: {bidirectional} bidirectional, {refused} refused, {unbuilt} not built here; "
        f"silent failures: {failures}."
    )


def page(found: Sequence[Architecture], backends: Sequence[str], versions: Mapping[str, str]) -> str:
    """docs/architectures.md: what was measured and how it came out, one row per entry, and every refusal's reason."""
    categories = Counter(one.category for one in found)
    made_of = ", ".join(f"{number} {category}" for category, number in categories.most_common())
    stated = ", ".join(f"{name} {version}" for name, version in versions.items())
    what = f"Every entry of transformers' causal-LM mapping, as a tiny random model in float32 on a CPU: {made_of}."
    parts = [
        "# Architectures\n",
        f"{summary(found)} Measured by `make architectures` with {stated}.\n",
        f"{what}\n{HOW}",
        _markdown_table(rows(found, backends)),
        _section("Refused", ((one.name, one.reasons) for one in found if not one.unbuilt and one.reasons)),
        _section("Not built here", ((one.name, one.reasons) for one in found if one.unbuilt)),
        _section("Silent failures", ((one.name, one.failures) for one in found if one.failures)),
        _section("Not ours", ((one.name, one.notes) for one in found if one.notes)),
    ]
    return "\n".join(part for part in parts if part)


def _row(one: Architecture, backends: Sequence[str]) -> dict[str, str]:
    answers = {answer.backend: answer for answer in one.answers}
    padding = [answer.padding for answer in one.answers if answer.padding is not None]
    checks = one.checks
    return {
        "name": one.name,
        "class": one.model_class,
        "category": one.category,
        **{backend: _said(answers.get(backend)) for backend in backends},
        "treated": ", ".join(one.treatments) or (CONFIG_FLAG if one.bidirectional else ""),
        "padding": _number(max(padding, default=None)),
        "packed": _packed(one),
        "saved": _number(None if checks is None else checks.saved),
        "adapter": _number(None if checks is None else checks.adapted),
        "gradients": "" if checks is None else "no" if "gradients" in checks.failed else "yes",
    }


def _said(answer: Answer | None) -> str:
    if answer is None:
        return NONE
    if any(answer.failures):
        return FAILED
    return YES if answer.bidirectional else NO


def _packed(one: Architecture) -> str:
    said = [answer for answer in one.answers if answer.bidirectional]
    changes = [answer.packed for answer in said if answer.packed is not None]
    if not changes:
        return "padded" if said else ""
    return ", ".join([_number(max(changes)), *(f"{a.backend}: padded" for a in said if a.packed is None)])


def _number(value: float | None) -> str:
    return "" if value is None else "0" if value == 0 else f"{value:.0e}"


def _markdown_table(table: Sequence[Mapping[str, str]]) -> str:
    if not table:
        return ""
    head = list(table[0])
    lines = [head, ["---"] * len(head), *([row[name] for name in head] for row in table)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _section(title: str, entries: Iterable[tuple[str, Sequence[str]]]) -> str:
    lines = [f"- **{name}**: {_plain(reason)}" for name, reasons in sorted(entries) for reason in reasons]
    return "\n".join([f"## {title}\n", *lines, ""]) if lines else ""


def _plain(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
