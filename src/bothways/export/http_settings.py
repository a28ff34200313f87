"""How a server is asked. In a file of its own, so that the command line can name the flags without loading torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bothways.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Http:
    """How an endpoint is asked."""

    model: str | None = None
    """Name of the model at an OpenAI endpoint; None: the one that it lists."""
    api_key_env: str | None = None
    """Environment variable with the API key, sent as a bearer token; None: no key."""
    timeout: float = 60.0
    """Seconds to wait for an answer."""
    encoding_format: Literal["float", "base64"] = "float"
    """How an OpenAI endpoint is asked to send numbers; the official client asks for base64."""

    def __post_init__(self) -> None:
        if not self.timeout > 0:
            raise ConfigError(f"verify: timeout={self.timeout}, expected seconds above 0.")
