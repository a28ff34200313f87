"""Every entry of transformers' causal-LM mapping, measured on tiny random models: does it become bidirectional?"""

from bothways.architectures.measure import BACKENDS, entries, measure
from bothways.architectures.page import page, rows, summary
from bothways.architectures.record import Answer, Architecture, Checks
from bothways.architectures.sweep import checked, sweep

__all__ = [
    "BACKENDS",
    "Answer",
    "Architecture",
    "Checks",
    "checked",
    "entries",
    "measure",
    "page",
    "rows",
    "summary",
    "sweep",
]
