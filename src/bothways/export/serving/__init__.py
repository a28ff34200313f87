"""Servers of other people: which encoders they serve right, the keys they read, and the command that starts each."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

SERVERS = {"vllm": "vllm", "tei": "tei", "sglang": "sglang"}
"""Target -> the module here: `write`, as every target has it, and `commands(folder, out)`."""


def next_steps(to: str, folder: str | Path, out: str | Path) -> str:
    """What to run after an export to a server: the server on `out`, then what compares its vectors with `folder`."""
    lines: list[str] = import_module(f"{__name__}.{SERVERS[to]}").commands(Path(folder), Path(out))
    return "\n".join(lines)
