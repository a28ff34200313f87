"""Everything that bothways raises on purpose: each message has the call, the expectation, the value and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BothwaysError(Exception):
    """Base of all errors that are the input's fault or the model's, never ours."""


class ConversionError(BothwaysError):
    """A decoder that cannot be proved bidirectional, or a folder that no longer is."""


class ConfigError(BothwaysError, ValueError):
    """A setting with a wrong name, type or value."""


class DataError(BothwaysError, ValueError):
    """A file, a row or a text that cannot be used; names the file and the line."""


class JobError(BothwaysError):
    """A job over a corpus that cannot go on, because processes die or a unit fails; the same command goes on."""


class VerificationError(BothwaysError):
    """What an engine returns is not what the encoder's folder says, or nothing that can be compared."""


class TrainingError(BothwaysError):
    """A stage that cannot start or cannot go on."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The way out of an unknown name: the nearest known one, or all of them."""
    choices = list(known)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    return f'Did you mean "{near[0]}"?' if near else f"Known: {', '.join(choices)}."
