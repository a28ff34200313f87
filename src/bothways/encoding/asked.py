"""How texts are to be encoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, get_args

from bothways.errors import ConfigError, did_you_mean
from bothways.precision import Precision, check_precision

Overflow = Literal["truncate", "chunk", "error"]
Output = Literal["text", "token"]


class Ask(TypedDict, total=False):
    """The keyword arguments of `Encoder.encode`; see `Asked` for each."""

    tokens_per_batch: int | None
    truncate_dim: int | None
    precision: Precision
    output: Output
    overflow: Overflow
    as_tensor: bool
    show_progress: bool


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked of the vectors, and how much is computed at once."""

    call: str = "encode"
    """Whose arguments these are, for errors."""
    tokens_per_batch: int | None = None
    """Tokens that go through the model at once; None: what is fast on the device. Changes speed and memory alone."""
    truncate_dim: int | None = None
    """So many of the first numbers of a vector are kept, scaled to unit length again; None: all."""
    precision: Precision = "float32"
    """Number format of the vectors, see `quantise`."""
    output: Output = "text"
    """text: one vector for each text; token: `TokenVectors` of each."""
    overflow: Overflow = "truncate"
    """What is done with a text of more than `max_length` tokens: cut it, compute it in pieces, or refuse it."""
    as_tensor: bool = False
    """Whether vectors come as tensors on the encoder's device, not as numpy arrays."""
    show_progress: bool = False

    def __post_init__(self) -> None:
        check_precision(self.precision)
        for name, known in (("overflow", get_args(Overflow)), ("output", get_args(Output))):
            if getattr(self, name) not in known:
                listed = ", ".join(f'"{value}"' for value in known)
                raise ConfigError(f'{self.call}: {name}="{getattr(self, name)}", expected one of {listed}.')
        if self.tokens_per_batch is not None and self.tokens_per_batch < 1:
            raise ConfigError(f"{self.call}: tokens_per_batch={self.tokens_per_batch}, expected 1 or more.")

    @classmethod
    def of(cls, call: str, ask: Mapping[str, Any]) -> Asked:
        """From keyword arguments. Raises ConfigError that names the nearest for an unknown one."""
        for name in ask:
            if name not in Ask.__annotations__:
                raise ConfigError(f'{call}: unknown argument "{name}". {did_you_mean(name, Ask.__annotations__)}')
        return cls(call=call, **ask)

    def dim_of(self, dim: int) -> int:
        """Numbers that are kept of a vector of `dim`. Raises ConfigError if there are not so many."""
        wanted = dim if self.truncate_dim is None else self.truncate_dim
        if not 1 <= wanted <= dim:
            raise ConfigError(f"{self.call}: truncate_dim={wanted}, but the encoder's vectors have {dim} numbers.")
        return wanted


@dataclass(frozen=True)
class TokenVectors:
    """The tokens of one text, without special tokens, instruction and prompt."""

    ids: list[int]
    spans: list[tuple[int, int]]
    """First character of each token in the text, and the one behind its last."""
    vectors: Any
    """Their last hidden states, not scaled to unit length: array or tensor, shape (tokens, dim)."""

    def __len__(self) -> int:
        return len(self.ids)
