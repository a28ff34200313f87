"""What every results file says beside its figures: versions, commit, command, hardware."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bothways import hardware, provenance

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Findings:
    """What a benchmark measured."""

    rows: Sequence[Mapping[str, Any]]
    """Every measurement."""
    ratios: Mapping[str, float] = field(default_factory=dict)
    """`<work>/<condition>/<time or memory>/<peer>` -> how many times faster or smaller; only what carries a target."""
    observed: Mapping[str, Any] = field(default_factory=dict)
    """The rest."""
    command: str | None = None
    """What made the figures, if not the command line of the benchmark."""
    hardware: Mapping[str, Any] = field(default_factory=hardware.describe)
    """The machine that was measured."""


def framed(findings: Findings, command: str) -> dict[str, Any]:
    """The content of a results file."""
    return {
        "versions": provenance.versions(),
        "commit": commit(),
        "command": findings.command or command,
        "hardware": dict(findings.hardware),
        "rows": list(findings.rows),
        "ratios": dict(findings.ratios),
        "observed": dict(findings.observed),
    }


def commit() -> str:
    """The commit that was measured, with a plus if the sources differ from it; empty outside a clone."""
    try:
        found = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--", "src", "benchmarks", ":!benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return ""
    return found + ("+" if changed else "")


def say(line: str) -> None:
    """Progress, on stderr."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
