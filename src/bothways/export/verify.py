"""Is what an engine returns what the encoder's folder says, or silently something else?

Its vectors are compared with two references made from the same weights: every token sees every token, or only those
before it. Where they are neither, the other ways of pooling and a prompt left out are tried, so that it can be said
what they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from bothways.encoder import Encoder
from bothways.errors import ConfigError, VerificationError, did_you_mean
from bothways.export.cases import Plan, planned
from bothways.export.explaining import explained, lengths
from bothways.export.judging import OTHER, Compared, Judge
from bothways.export.references import Asked, Way, open_reference, other_direction, own_way, unit, vectors
from bothways.export.verdict import Case as Case
from bothways.export.verdict import Near
from bothways.export.verdict import Verdict as Verdict


@runtime_checkable
class Engine(Protocol):
    """What is asked for vectors.

    An attribute `number_format` (float32, float16, bfloat16, q8_0, int8), where there is one, says how exact they can
    be; an engine without it is taken for the least exact.
    """

    name: str
    """As in "onnxruntime", "llama.cpp", "http://127.0.0.1:8000/v1/embeddings"."""
    max_length: int | None
    """Tokens that it reads of a text; None: unknown."""

    def embed(self, texts: Sequence[str], /) -> np.ndarray:
        """float32, (texts, dim), as the engine returns them; one call, so that it pads or packs."""
        ...

    def close(self) -> None:
        """Let go of files, memory and connections."""
        ...


@runtime_checkable
class PromptedEngine(Protocol):
    """An engine that knows stored prompts by name, and is asked so by its users; for others the text begins with it."""

    def embed_prompted(self, texts: Sequence[str], prompt_name: str, /) -> np.ndarray:
        """As `embed`, with that prompt before each text."""
        ...


def verify(
    engine: Engine,
    against: str | Path,
    *,
    texts: Sequence[str] | None = None,
    tolerance: float | None = None,
    number_format: str | None = None,
    prompt: str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> Verdict:
    """Compares what an engine returns with the bidirectional and the causal vectors of the encoder in a folder.

    Cases: short and long texts, alone and in one call (padded), beyond the attention window where the model has one,
    and with each stored prompt. `texts` stand in for the package's own. `tolerance` is the largest difference of a
    number between unit vectors that is near; None: what the number format allows, `number_format` or else the engine's.
    `prompt` names the stored prompt that the engine itself puts before every text.

    Raises VerificationError if the engine's answer cannot be compared (not finite, another dimension, another number
    of vectors), DataError for texts or a folder that cannot be used, ConfigError for an unknown prompt or format.
    """
    judge = Judge.of(tolerance, number_format or getattr(engine, "number_format", None))
    encoder = open_reference(against, device=device, trust_remote_code=trust_remote_code)
    settings, stored = encoder.settings, encoder.settings.prompts
    if prompt is not None and prompt not in stored:
        has = did_you_mean(prompt, stored) if stored else "It has none: leave the prompt out."
        raise ConfigError(f'verify: {against} has no stored prompt "{prompt}". {has}')
    beside = [name for name, text in stored.items() if text] if prompt is None else []
    plans = planned(encoder, texts, max_length=engine.max_length, prompt=prompt, prompts=beside)
    found = np.concatenate([_returned(engine, plan, encoder, prompt) for plan in plans.cases])
    asked = [one for plan in plans.cases for one in plan.asked]
    prompted, bare = _references(encoder, against, asked, trust_remote_code)
    own = own_way(settings, settings.direction)
    compared = judge.compare(unit(found), {way: unit(prompted[own_way(settings, way)]) for way in OTHER})
    matches = compared.verdict()
    faults, notes = lengths(found, prompted[own], normalize=settings.normalize)
    if matches == "neither":
        scaled, scaled_bare = ({way: unit(rows) for way, rows in kind.items()} for kind in (prompted, bare))
        faults = [*explained(judge, unit(found), asked, scaled, scaled_bare, own), *faults]
    return Verdict(
        engine=engine.name,
        against=str(against),
        matches=matches,
        cases=tuple(_cases(plans.cases, compared)),
        expected=settings.direction,
        faults=tuple(faults),
        notes=(*plans.notes, *notes),
        allowed=judge.allowed,
    )


def _returned(engine: Engine, plan: Plan, encoder: Encoder, own_prompt: str | None) -> np.ndarray:
    """The vectors of a case, (texts, dim), asked for as its users ask. Raises VerificationError as `verify` does."""
    calls = [plan.asked] if plan.together else [(one,) for one in plan.asked]
    rows = []
    for call in calls:
        name = call[0].prompt
        texts = [one.text for one in call]
        if name is None or name == own_prompt:
            found = engine.embed(texts)
        elif isinstance(engine, PromptedEngine):
            found = engine.embed_prompted(texts, name)
        else:
            found = engine.embed([encoder.settings.prompts[name] + text for text in texts])
        rows.append(_checked(engine.name, plan.name, np.asarray(found), len(texts), encoder.dim))
    return np.concatenate(rows)


def _checked(engine: str, case: str, found: np.ndarray, texts: int, dim: int) -> np.ndarray:
    if found.ndim != 2 or len(found) != texts:
        raise VerificationError(
            f'{engine} returned an array of shape {found.shape} for {texts} texts in "{case}", '
            f"expected ({texts}, {dim})."
        )
    if found.shape[1] != dim:
        raise VerificationError(
            f"{engine} returned vectors of {found.shape[1]} numbers, the folder's have {dim}: it serves another model, "
            "or cuts dimensions."
        )
    wrong = np.flatnonzero(~np.isfinite(found).all(axis=1))
    if len(wrong):
        raise VerificationError(f'{engine} returned NaN or infinity for text {wrong[0] + 1} of {texts} in "{case}".')
    return found


def _references(
    encoder: Encoder, against: str | Path, asked: Sequence[Asked], trust_remote_code: bool
) -> tuple[dict[Way, np.ndarray], dict[Way, np.ndarray]]:
    """Vectors of what was asked by every way of making them, in both directions; and without the prompts."""
    both = [*asked, *(Asked(one.text) for one in asked)]
    found = vectors(encoder, both) | vectors(
        other_direction(encoder, against, trust_remote_code=trust_remote_code), both
    )
    cut = len(asked)
    return {way: rows[:cut] for way, rows in found.items()}, {way: rows[cut:] for way, rows in found.items()}


def _cases(plans: Sequence[Plan], compared: Compared) -> list[Case]:
    bounds = np.cumsum([0, *(len(plan.asked) for plan in plans)])
    cases = []
    for plan, (start, end) in zip(plans, pairwise(bounds), strict=True):
        part = compared[start:end]
        two_way, one_way = (
            Near(float(part.to[way].cosine.min()), float(part.to[way].difference.max())) for way in OTHER
        )
        cases.append(Case(plan.name, len(plan.asked), two_way, one_way, part.match()))
    return cases
