"""Tokens of sources, kept on disk under a name made of all they depend on: tokenised once, then found again."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from tokenizers import __version__ as tokenizers_version
from transformers import PreTrainedTokenizerBase
from transformers import __version__ as transformers_version

from bothways.data import TEXTS, Origin, Source, Tally, Texts, origins_of
from bothways.errors import TrainingError
from bothways.folders import new_folder
from bothways.training.tokens import Encode, OnDisk, Store, write

FORMAT = 1
"""Part of every name: another way to write the files is another name."""
VARIABLE = "BOTHWAYS_CACHE"
IDS, OFFSETS, HASHES, FACTS = "ids.i32", "offsets.i64", "hashes.u64", "facts.json"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_log = logging.getLogger(__name__)


def folder() -> Path:
    """Where tokens are kept: `$BOTHWAYS_CACHE`, else bothways in `$XDG_CACHE_HOME` or ~/.cache; then tokens."""
    own = os.environ.get(VARIABLE)
    home = Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bothways"
    return home / "tokens"


def stored(texts: Texts, encode: Encode, how: str) -> list[Store]:
    """The tokens of each source of `texts`, found on disk or put there.

    `how` is all that decides about the ids besides the texts. Of several processes that want the same, one works and
    the others wait. Raises DataError for a bad row, TrainingError where there is no room.
    """
    return [_of_source(texts, source, encode, how) for source in texts.sources]


def in_memory(texts: Sequence[str], encode: Encode) -> list[Store]:
    """The tokens of a list: one store, or one for each source that a list of `read_texts` came from."""
    origins = origins_of(texts)
    if not origins:
        return [_held(texts, encode, None)]
    rest = iter(texts)
    return [_held(list(islice(rest, origin.rows)), encode, origin) for origin in origins]


def identity(tokenizer: PreTrainedTokenizerBase, max_length: int) -> str:
    """All that decides which ids a text gives, as a text."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        # What such a tokenizer does is code: that of transformers, led by its arguments.
        known = sorted(tokenizer.get_vocab().items())
        arguments = repr(sorted(tokenizer.init_kwargs.items()))
        adds = [getattr(tokenizer, name, None) for name in ("add_bos_token", "add_eos_token")]
        inside: Any = [type(tokenizer).__name__, transformers_version, arguments, adds, known]
    else:
        # A copy: how the tokenizer pads and cuts changes from call to call.
        plain = type(backend).from_str(backend.to_str())
        plain.no_padding()
        plain.no_truncation()
        inside = plain.to_str()
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    return json.dumps([FORMAT, tokenizers_version, max_length, special, inside])


def _held(texts: Sequence[str], encode: Encode, origin: Origin | None) -> Store:
    ids, offsets, hashes = BytesIO(), BytesIO(), BytesIO()
    _, _, opening = write(texts, encode, ids, offsets, hashes)
    numbers = np.frombuffer(ids.getbuffer(), np.int32)
    places = np.frombuffer(offsets.getbuffer(), np.int64)
    return Store(numbers, places, np.frombuffer(hashes.getbuffer(), np.uint64), opening, origin)


def _of_source(texts: Texts, source: Source, encode: Encode, how: str) -> Store:
    state = json.dumps([source.fingerprint(TEXTS), texts.on_bad_row, how])
    place = folder() / hashlib.sha256(state.encode()).hexdigest()[:32]
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise TrainingError(f"{place.parent}: {problem.strerror}. Name another folder in ${VARIABLE}.") from None
    facts = _found(place, source.name)
    if facts is None:
        with _alone(place, source.name):
            facts = _found(place, source.name) or _make(texts, source, encode, place)
    return Store(
        OnDisk(place / IDS),
        np.asarray(np.memmap(place / OFFSETS, np.int64, mode="r")),
        np.asarray(np.memmap(place / HASHES, np.uint64, mode="r")),
        facts["opening"],
        Origin(source.name, source.weight, facts["texts"], facts["skipped"]),
    )


@contextmanager
def _alone(place: Path, name: str) -> Iterator[None]:
    """One process at a time; one that dies lets the next one in."""
    lock = FileLock(place.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _log.warning("%s: waiting for another process, which tokenises it", name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _make(texts: Texts, source: Source, encode: Encode, place: Path) -> dict[str, Any]:
    # What a killed process left, whole or in part.
    for rest in place.parent.glob(f".{place.name}.*"):
        shutil.rmtree(rest, ignore_errors=True)
    shutil.rmtree(place, ignore_errors=True)
    tally = Tally()
    try:
        with new_folder(place) as partial:
            with ExitStack() as files:
                streams = [files.enter_context((partial / name).open("wb")) for name in (IDS, OFFSETS, HASHES)]
                count, tokens, opening = write(texts.of(source, tally), encode, *streams)
                for stream in streams:
                    # Their sizes are all that says later that they are whole, and would be right after a power cut too.
                    stream.flush()
                    os.fsync(stream.fileno())
            facts = {
                "texts": count,
                "tokens": tokens,
                "opening": opening,
                "skipped": tally.skipped,
                "listed": tally.listed,
            }
            (partial / FACTS).write_text(json.dumps(facts), encoding="utf-8")
    except OSError as problem:
        if problem.errno not in NO_ROOM:
            raise
        raise TrainingError(
            f"{place.parent}: no room for the tokens of {source.name} ({problem.strerror}). Make room, or name another "
            f"folder in ${VARIABLE}."
        ) from None
    return facts


def _found(place: Path, name: str) -> dict[str, Any] | None:
    """What is kept there, its bad rows reported again; None if that is nothing, or not whole."""
    try:
        facts: dict[str, Any] = json.loads((place / FACTS).read_text(encoding="utf-8"))
        sizes = [(place / file).stat().st_size for file in (IDS, OFFSETS, HASHES)]
    except (OSError, ValueError):
        return None
    if sizes != [4 * facts["tokens"], 8 * (facts["texts"] + 1), 8 * facts["texts"]]:
        return None
    Tally(facts["texts"], facts["skipped"], facts["listed"]).report(name)
    return facts
