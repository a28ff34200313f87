"""What the tests of a corpus share."""

from __future__ import annotations

from pathlib import Path

import pytest

from bothways import convert


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory, tiny_llama_folder: Path) -> Path:
    """The folder of a random encoder, tiny. Some tests have one of their own in its place."""
    folder = tmp_path_factory.mktemp("encoder") / "tiny"
    convert(tiny_llama_folder, dtype="float32", device="cpu").save_pretrained(folder)
    return folder
