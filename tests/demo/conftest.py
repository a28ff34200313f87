"""The standard library's docstrings, read once."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from bothways.demo.documentation import Docstring, docstrings_of, python_files

PACKAGES = ("", "asyncio", "concurrent", "email", "http", "importlib", "json", "logging", "xml")
"""The top level and some packages: enough to split, in a second or two."""


@pytest.fixture(scope="session")
def library() -> list[Docstring]:
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [(path, module) for path, module in python_files(root, "") if module.rpartition(".")[0] in PACKAGES]
    return [docstring for path, module in files for docstring in docstrings_of(path, module)]
