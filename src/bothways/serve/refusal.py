"""What a request is refused with, in the shape of OpenAI's errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


@dataclass
class Refusal(Exception):  # noqa: N818
    """Raised anywhere on a request's way; the app answers with it."""

    status: int
    message: str
    param: str | None = None
    """The field of the body that is wrong."""
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The body of the answer."""
        fallback = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = TYPES.get(self.status, fallback)
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def invalid(message: str, param: str | None = None, code: str | None = None) -> Refusal:
    """What the client can mend in the body."""
    return Refusal(400, message, param, code)


def busy(status: int, message: str, code: str, seconds: int = 1) -> Refusal:
    """What the same request may get over in some seconds."""
    return Refusal(status, message, code=code, headers={"retry-after": str(seconds)})
