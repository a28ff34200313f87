"""Servers for the tests of this folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from serving import Forks, Server

from bothways import Encoder, convert

PROMPTS = {"query": "query: ", "document": "passage: ", "code": "def "}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_llama_folder: Path) -> Path:
    """An encoder with prompts that reads 256 tokens."""
    folder = tmp_path_factory.mktemp("served") / "tiny"
    encoder = convert(tiny_llama_folder, dtype="float32", device="cpu")
    encoder.settings = replace(encoder.settings, prompts=PROMPTS)
    encoder.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def encoder(folder: Path) -> Encoder:
    return Encoder.from_pretrained(folder, device="cpu")


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    forks = Forks(tmp_path_factory.mktemp("forks"))
    yield forks
    forks.close()


@pytest.fixture(scope="session")
def server(forks: Forks, folder: Path) -> Server:
    """As it comes."""
    return forks.start(folder)
