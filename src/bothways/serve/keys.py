"""The keys that requests must bring."""

from __future__ import annotations

import hmac
import os

from bothways.errors import ConfigError
from bothways.serve.settings import Serve

SCHEME = "bearer"


def read_keys(settings: Serve) -> tuple[bytes, ...]:
    """All keys that are valid; none if none is asked for. Raises ConfigError for a source without one."""
    found: list[str] = []
    if settings.api_key_env is not None:
        key = os.environ.get(settings.api_key_env, "").strip()
        if not key:
            raise ConfigError(
                f"api_key_env={settings.api_key_env}: this environment variable is not set, or empty. Set it."
            )
        found.append(key)
    if settings.api_key_file is not None:
        try:
            lines = settings.api_key_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as problem:
            raise ConfigError(f"api_key_file={settings.api_key_file} cannot be read: {problem}.") from None
        kept = [line.strip() for line in lines if line.strip()]
        if not kept:
            raise ConfigError(f"api_key_file={settings.api_key_file} holds no key. Write one a line.")
        found += kept
    return tuple(key.encode() for key in found)


def is_valid(header: str | None, keys: tuple[bytes, ...]) -> bool:
    """Whether the "Authorization" header brings one of the keys; how long that takes says nothing about them."""
    if not keys:
        return True
    scheme, _, key = (header or "").partition(" ")
    # Headers are read as latin-1.
    given = key.strip().encode("latin-1", "replace")
    matches = [hmac.compare_digest(given, known) for known in keys]
    return any(matches) and scheme.lower() == SCHEME
