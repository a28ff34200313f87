"""How an encoder is served."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from bothways.encoding import Overflow
from bothways.errors import ConfigError

MOST_INPUTS = 2048
"""OpenAI's own limit."""


@dataclass(frozen=True, kw_only=True)
class Serve:
    """How an encoder is served."""

    host: str = "127.0.0.1"
    """Address to listen on. Any but the loopback is open to the network, and wants a key or --no-api-key."""
    port: int = 8000
    """0: any that is free; the line that says "ready" has it."""
    served_name: str | None = None
    """The "model" of requests and answers; None: the folder's name, or the hub id."""
    api_key_env: str | None = None
    """Environment variable with the key that requests to /v1 must bring as "Authorization: Bearer KEY"."""
    api_key_file: Path | None = None
    """File with such keys, one a line: while keys are changed, the old one and the new one."""
    no_api_key: bool = False
    """Serve the network without a key."""
    max_requests: int = 256
    """Requests in the server at once, waiting ones included; one more is answered 429."""
    max_inputs: int = MOST_INPUTS
    """Texts of one request."""
    max_body_bytes: int = 8 << 20
    """Bytes of one request's body; a longer one is answered 413."""
    request_timeout: float = 300.0
    """Seconds from a request's first line to its vectors: 408 if its body was not there by then, else 503."""
    shutdown_timeout: float = 30.0
    """Seconds that SIGTERM and SIGINT leave requests that are in the server."""
    tokens_per_batch: int | None = None
    """Tokens that go through the model at once; None: what is fast on the device."""
    max_wait_ms: float = 0.0
    """Milliseconds to wait until that many tokens are there; 0: what waits is computed at once."""
    overflow: Overflow = "truncate"
    """What is done with a text of more tokens than the encoder reads: cut it (truncate), compute it in pieces (chunk),
    or refuse the request (error). Answers say how many there were."""

    def __post_init__(self) -> None:
        for name in ("max_requests", "max_inputs", "max_body_bytes", "tokens_per_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"Serve({name}={value}): expected 1 or more.")
        for name in ("request_timeout", "shutdown_timeout"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"Serve({name}={getattr(self, name)}): expected seconds, more than 0.")
        if not 0 <= self.max_wait_ms < float("inf"):
            raise ConfigError(f"Serve(max_wait_ms={self.max_wait_ms}): expected 0 or more.")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"Serve(port={self.port}): expected 0 to 65535.")
        if self.overflow not in get_args(Overflow):
            raise ConfigError(f'Serve(overflow="{self.overflow}"): use truncate, chunk or error.')
        if self.served_name is not None and not self.served_name.strip():
            raise ConfigError('Serve(served_name=""): expected a name, or None for the folder\'s.')
        if self.no_api_key and self.has_key:
            raise ConfigError("Serve: no_api_key and a key contradict each other. Leave one of them out.")
        if not self.is_loopback and not self.has_key and not self.no_api_key:
            raise ConfigError(
                f'Serve(host="{self.host}") is open to the network, without a key. Give --api-key-env NAME or '
                "--api-key-file FILE, or say --no-api-key if everyone who reaches it may use it."
            )

    @property
    def has_key(self) -> bool:
        """Whether requests must bring one."""
        return self.api_key_env is not None or self.api_key_file is not None

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
