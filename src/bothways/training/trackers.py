"""What a run reports to TensorBoard, W&B or trackio, through accelerate."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bothways.errors import ConfigError
from bothways.training.settings import Training


class Trackers:
    """Loss, learning rate, gradient norm, rate and held-out scores, by step. Without a tracker, nothing."""

    def __init__(self, accelerator: Any, stage: str, settings: Mapping[str, Any]) -> None:
        self.accelerator = accelerator
        if accelerator.log_with:
            accelerator.init_trackers(f"bothways-{stage}", config=_plain(settings))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """The values after so many steps."""
        if self.accelerator.log_with:
            self.accelerator.log(dict(values), step=step)

    def close(self) -> None:
        """Write what is still held back."""
        for tracker in self.accelerator.trackers if self.accelerator.log_with else ():
            tracker.finish()


def options(settings: Training, checkpoint_dir: Path | None) -> dict[str, Any]:
    """What accelerate has to know. Raises ConfigError for a tracker that is not installed, or has no place to write."""
    if not settings.trackers:
        return {}
    for name in settings.trackers:
        if find_spec(name) is None:
            raise ConfigError(f'trackers={settings.trackers!r}: "{name}" is not installed: pip install {name}.')
    stem = None if checkpoint_dir is None else checkpoint_dir.name.removesuffix(".checkpoints")
    beside = None if checkpoint_dir is None else checkpoint_dir.with_name(f"{stem}.logs")
    folder = settings.log_dir or beside
    if folder is None:
        raise ConfigError(f"trackers={settings.trackers!r}: log_dir is missing. Name the folder for what they write.")
    return {"log_with": list(settings.trackers), "project_dir": str(folder)}


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As trackers take it: numbers, texts and truth values alone."""
    return {name: value if isinstance(value, (int, float, str)) else str(value) for name, value in settings.items()}
