"""Folders and files that appear whole or not at all, and never over something that is there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from bothways.errors import ConfigError

WAY_OUT = "Name another folder, or empty it: nothing is overwritten."


def refuse_taken(folder: str | Path, way_out: str = WAY_OUT) -> None:
    """Raises ConfigError if `folder` is a file, or a folder with something in it."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file, expected a folder to write to. Name another one.")
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"{folder} exists and is not empty. {way_out}")


@contextmanager
def new_folder(folder: Path, *, overwrite: bool = False, way_out: str = WAY_OUT) -> Iterator[Path]:
    """A temporary folder that takes the name `folder` when the block ends without an error.

    With `overwrite` what was there is kept until the new one is in place. Raises ConfigError as `refuse_taken` does.
    """
    if not overwrite or not folder.is_dir():
        refuse_taken(folder, way_out)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        if folder.exists():
            os.replace(folder, old)
        try:
            os.replace(partial, folder)
        except OSError:
            if old.exists():
                os.replace(old, folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def refuse_taken_file(path: Path) -> None:
    """Raises ConfigError if there is something called `path`."""
    if path.exists():
        raise ConfigError(f"{path} exists. Name another file, or delete it: nothing is overwritten.")


@contextmanager
def new_file(path: Path) -> Iterator[TextIO]:
    """A temporary file to write UTF-8 to, which takes the name `path` when the block ends without an error.

    Raises ConfigError if there is one already.
    """
    refuse_taken_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            yield file
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def new_path(path: Path) -> Iterator[Path]:
    """Where to make a file or a folder, which takes the name `path` when the block ends without an error.

    It already has the last part of that name, which some formats write into themselves. Raises ConfigError if there is
    something called `path`, AssertionError if the block made nothing there, or something beside it.
    """
    refuse_taken_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial / path.name
        made = [found.name for found in partial.iterdir()]
        if made != [path.name]:
            raise AssertionError(f"expected {path.name} alone to be made, found {made}")
        os.replace(partial / path.name, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_whole(path: Path, content: str) -> None:
    """Write UTF-8 in place of what was there, whole or not at all, also where the machine stops."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
