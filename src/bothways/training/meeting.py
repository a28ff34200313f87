"""Where processes meet within a step: to exchange vectors, and before the step is settled.

A process may fail, or run out of memory and take its step again, while the others wait for it. So each says what it
has come for, and nothing else is done until all have come for the same.
"""

from __future__ import annotations

import math
from enum import IntEnum

import torch
from jaxtyping import Float
from torch import Tensor

from bothways.training.processes import Place, failure_of, together


class _Aim(IntEnum):
    EXCHANGE, SETTLE, FAILED = range(3)


def exchange(place: Place, own: Float[Tensor, "own dim"], count: int) -> Float[Tensor, "count dim"]:
    """The `count` vectors of all processes, in the order of their rows, dealt as in `task.shares`.

    Where other processes have finished this step without this one, which ran out of memory after an exchange, it waits
    until they have come here again. Raises TrainingError if another process has failed or died.
    """
    if place.processes == 1:
        return own
    while True:
        aims = _announced(place, _Aim.EXCHANGE, own.device)
        if _Aim.FAILED in aims:
            raise failure_of(aims.index(_Aim.FAILED))
        if _Aim.SETTLE not in aims:
            break
    padded = own.new_zeros(math.ceil(count / place.processes), own.shape[1])
    padded[: len(own)] = own
    found = [torch.empty_like(padded) for _ in range(place.processes)]
    with together():
        torch.distributed.all_gather(found, padded)
    # Row number i is the (i // processes)-th of process i % processes.
    return torch.stack(found, dim=1).flatten(0, 1)[:count]


def all_settle(place: Place, device: torch.device, *, failed: bool) -> bool:
    """Whether every process is done with its part of the step; False: another one takes it again, so must this one.

    A process that has failed waits until all others have heard of it. Raises TrainingError if one of them died.
    """
    if place.processes == 1:
        return True
    while True:
        aims = _announced(place, _Aim.FAILED if failed else _Aim.SETTLE, device)
        if _Aim.EXCHANGE not in aims:
            return True
        if not failed:
            return False


def _announced(place: Place, aim: _Aim, device: torch.device) -> list[_Aim]:
    """What every process has come for."""
    aims = torch.zeros(place.processes, dtype=torch.int64, device=device)
    aims[place.rank] = int(aim)
    with together():
        torch.distributed.all_reduce(aims)
    return [_Aim(value) for value in aims.tolist()]
