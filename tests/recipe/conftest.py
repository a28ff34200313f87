"""What the tests of recipes that are run have in common."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def work(made: Path, tmp_path: Path) -> Path:
    """A copy of what the module's own `made` has made, to be changed."""
    return shutil.copytree(made, tmp_path / "work" / made.name)
