"""Contract: a folder is whole or not there, and what it replaces is kept until then."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bothways.errors import ConfigError
from bothways.folders import new_folder, new_path


def fill(folder: Path, text: str, *, overwrite: bool = False) -> None:
    with new_folder(folder, overwrite=overwrite) as partial:
        (partial / "file").write_text(text)


def test_what_is_there_is_replaced_only_when_asked(tmp_path: Path) -> None:
    fill(tmp_path / "out", "first")
    with pytest.raises(ConfigError, match="exists and is not empty"):
        fill(tmp_path / "out", "second")
    assert (tmp_path / "out" / "file").read_text() == "first"
    fill(tmp_path / "out", "second", overwrite=True)
    assert (tmp_path / "out" / "file").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_error_inside_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    fill(tmp_path / "out", "first")

    def half_way() -> None:
        with new_folder(tmp_path / "out", overwrite=True) as partial:
            (partial / "file").write_text("half")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        half_way()
    assert (tmp_path / "out" / "file").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_replacement_that_fails_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "out", "first")
    move = os.replace

    def full_disk(source: Path, target: Path) -> None:
        if source.name.endswith(".partial"):
            raise OSError("disk full")
        move(source, target)

    monkeypatch.setattr("bothways.folders.os.replace", full_disk)
    with pytest.raises(OSError, match="disk full"):
        fill(tmp_path / "out", "second", overwrite=True)
    assert (tmp_path / "out" / "file").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ConfigError, match="out is a file, expected a folder to write to"):
        fill(tmp_path / "out", "second", overwrite=True)
    assert (tmp_path / "out").read_text() == "mine"


def test_a_path_is_a_file_or_a_folder_whole_or_not_at_all(tmp_path: Path) -> None:
    for name in ("file.bin", "folder"):
        with new_path(tmp_path / "deep" / name) as partial:
            assert partial.name == name
            (partial.mkdir() if name == "folder" else partial.write_text("whole"))
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["file.bin", "folder"]
    with pytest.raises(ConfigError, match=r"file\.bin exists\. Name another"), new_path(tmp_path / "deep" / "file.bin"):
        pass
    with pytest.raises(FileNotFoundError), new_path(tmp_path / "half") as partial:
        partial.with_name(partial.write_text("half") * "x").read_text()
    with pytest.raises(AssertionError, match=r"expected half alone"), new_path(tmp_path / "half") as partial:
        partial.with_name("beside").write_text("lost")
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
