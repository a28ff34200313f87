"""Tiny checkpoints as the reference leaves them: an MNTP adapter, and a second one."""

from __future__ import annotations

from pathlib import Path

import pytest
from lora_folders import amend, make_adapter


@pytest.fixture(scope="session")
def mntp(tmp_path_factory: pytest.TempPathFactory, tiny_llama_folder: Path) -> Path:
    return make_adapter(tiny_llama_folder, tmp_path_factory.mktemp("checkpoints") / "tiny-mntp", seed=1)


@pytest.fixture(scope="session")
def supervised(tmp_path_factory: pytest.TempPathFactory, tiny_llama_folder: Path) -> Path:
    """Says, as the reference's do, that it was trained on the decoder."""
    folder = make_adapter(tiny_llama_folder, tmp_path_factory.mktemp("checkpoints") / "tiny-mntp-supervised", seed=2)
    amend(
        folder / "llm2vec_config.json", pooling_mode="mean", max_length=512, doc_max_length=400, skip_instruction=True
    )
    return folder
