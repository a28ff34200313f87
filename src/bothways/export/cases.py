"""What an engine is asked: texts short and long, alone and together, beyond the window, and with each stored prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bothways.bidirectional.windows import windowed_layers
from bothways.encoder import Encoder
from bothways.errors import DataError
from bothways.export.references import Asked

TEXTS = (
    "Where does the river Danube end?",
    "The Danube rises in the Black Forest and flows through ten countries before it reaches the Black Sea.",
    "No refunds.",
    "def area(radius): return 3.14159 * radius ** 2",
    "She had left the keys on the kitchen table, or so she thought, until the neighbour rang the bell and held them up "
    "without a word, smiling, as if he had known all along that she would be looking for them.",
    "In 1854 a physician removed the handle of a water pump in Soho, and the cholera that had killed hundreds faded.",
    "Bread needs four things: flour, water, salt and time. Of these the last one is the hardest to buy, and the first "
    "three are worth little without it.",
    "The committee postponed its decision because two of its members had not read the report.",
)
"""Real sentences of unequal length, of several kinds."""
LONG = 128
"""Tokens of the long text, where that many are read."""


@dataclass(frozen=True)
class Plan:
    """One case: what is asked for, and in how many calls."""

    name: str
    asked: tuple[Asked, ...]
    together: bool
    """In one call, so that the engine has to pad or to pack; else a call for each text."""


@dataclass(frozen=True)
class Plans:
    """All cases, and what could not be one of them."""

    cases: tuple[Plan, ...]
    notes: tuple[str, ...]


def planned(
    encoder: Encoder, texts: Sequence[str] | None, *, max_length: int | None, prompt: str | None, prompts: Sequence[str]
) -> Plans:
    """The cases for an encoder and an engine that reads at most `max_length` tokens of a text.

    `prompt` is put before every text by the engine itself; `prompts` are asked for beside. Raises DataError if there
    is no text.
    """
    if texts is not None and not any(text.strip() for text in texts):
        raise DataError("verify: no text to compare. Pass at least one that is not empty.")
    given = TEXTS if texts is None else tuple(text for text in texts if text.strip())
    most = min(encoder.settings.max_length, max_length or encoder.settings.max_length)
    notes = []
    if most < encoder.settings.max_length:
        notes.append(f"the engine reads {most} tokens of a text, the folder {encoder.settings.max_length}")
    short = [_cut(encoder, text, prompt, most) for text in given]
    cut = sum(text != own for text, own in zip(short, given, strict=True))
    if cut:
        notes.append(f"{cut} of the texts have more than {most} tokens and were cut")
    long = _stretched(encoder, given, prompt, min(most, LONG))
    found = [
        Plan("short texts, alone", _asked(short, prompt), together=False),
        Plan("texts of unequal length, together", _asked([long, *short], prompt), together=True),
        Plan(f"a text of {_length(encoder, long, prompt)} tokens, alone", _asked([long], prompt), together=False),
    ]
    window = max(windowed_layers(encoder.model).values(), default=None)
    # A window that was opened is as wide as the longest text.
    if window is not None and encoder.settings.windows != "full":
        if window + 1 < most:
            wide = _stretched(encoder, given, prompt, min(most, window + window // 2 + 2))
            where = f"a text of {_length(encoder, wide, prompt)} tokens, beyond the window of {window}"
            found.append(Plan(f"{where}, alone", _asked([wide], prompt), together=False))
            found.append(Plan(f"{where}, with short ones", _asked([wide, *short[:2]], prompt), together=True))
        else:
            notes.append(f"no text goes beyond the window of {window} tokens, because {most} are read")
    for name in prompts:
        after = [_cut(encoder, text, name, most) for text in given]
        found.append(Plan(f'the stored prompt "{name}"', _asked(after, name), together=True))
    return Plans(tuple(found), tuple(notes))


def _asked(texts: Sequence[str], prompt: str | None) -> tuple[Asked, ...]:
    return tuple(Asked(text, prompt) for text in texts)


def _length(encoder: Encoder, text: str, prompt: str | None) -> int:
    joined = (encoder.settings.prompts[prompt] if prompt is not None else "") + text
    return len(encoder.tokenizer(joined).input_ids)


def _cut(encoder: Encoder, text: str, prompt: str | None, most: int) -> str:
    """As many of a text's first words as have at most so many tokens; the first word at least."""
    if _length(encoder, text, prompt) <= most:
        return text
    words = text.split()
    fits, too_many = 1, len(words)
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if _length(encoder, " ".join(words[:middle]), prompt) <= most:
            fits = middle
        else:
            too_many = middle
    return " ".join(words[:fits])


def _stretched(encoder: Encoder, texts: Sequence[str], prompt: str | None, tokens: int) -> str:
    """The texts one after another, again and again, to about so many tokens and no more."""
    whole = " ".join(texts)
    while _length(encoder, whole, prompt) < tokens:
        whole = f"{whole} {whole}"
    return _cut(encoder, whole, prompt, tokens)
