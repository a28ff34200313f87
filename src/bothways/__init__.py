"""Every decoder can look both ways: turn a decoder-only language model into a text encoder, prove it, train it.

The public names below are imported when they are first used, so that `import bothways` costs nothing.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bothways.bidirectional.conversion import make_bidirectional as make_bidirectional
    from bothways.bidirectional.probe import Certificate as Certificate
    from bothways.encoder import Encoder as Encoder
    from bothways.stages.convert import convert as convert
    from bothways.stages.distil import distil as distil
    from bothways.stages.merge import merge as merge
    from bothways.stages.merge_settings import Merge as Merge
    from bothways.stages.mntp import mntp as mntp
    from bothways.stages.simcse import simcse as simcse
    from bothways.stages.supervised import supervised as supervised
    from bothways.training.settings import MNTP as MNTP
    from bothways.training.settings import Distil as Distil
    from bothways.training.settings import SimCSE as SimCSE
    from bothways.training.settings import Supervised as Supervised

__version__ = "0.1.0"

# Where DeepSpeed is installed, accelerate imports it in every process, and where there is no GPU it says so on stdout,
# which is for data.
logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())

_HOMES = {
    "Certificate": "bidirectional.probe",
    "Distil": "training.settings",
    "Encoder": "encoder",
    "MNTP": "training.settings",
    "Merge": "stages.merge_settings",
    "SimCSE": "training.settings",
    "Supervised": "training.settings",
    "convert": "stages.convert",
    "distil": "stages.distil",
    "make_bidirectional": "bidirectional.conversion",
    "merge": "stages.merge",
    "mntp": "stages.mntp",
    "simcse": "stages.simcse",
    "supervised": "stages.supervised",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bothways' has no attribute '{name}'")
    return getattr(import_module(f"bothways.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
