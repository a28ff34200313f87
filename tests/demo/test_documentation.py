"""What is taken of the documentation, and that nothing is run for it."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

import pytest

from bothways.demo import documentation
from bothways.demo.documentation import Docstring, divide, docstrings_of, python_files, read_docstrings, read_topics

SOURCE = '''"""What the module is for. And more of it."""
raise SystemExit("this file was imported")
class Public:
    """A class that counts words.

    Its rest.
    """
    def method(self):
        \'\'\'Return the number of words.\'\'\'
        def inner():
            """Nobody can call this."""
    async def later(self):
        """Return the number of words in time."""
    def _private(self):
        """For the class alone."""
    def bare(self): return "\\d"
def _hidden():
    """For the module alone."""
'''


def test_docstrings_are_read_and_never_imported(tmp_path: Path) -> None:
    path = tmp_path / "counting.py"
    path.write_text(SOURCE)
    assert docstrings_of(path, "pkg.counting") == [
        Docstring("pkg.counting", "pkg.counting", "What the module is for.", "And more of it."),
        Docstring("pkg.counting.Public", "pkg.counting", "A class that counts words.", "Its rest."),
        Docstring("pkg.counting.Public.method", "pkg.counting", "Return the number of words.", ""),
        Docstring("pkg.counting.Public.later", "pkg.counting", "Return the number of words in time.", ""),
        Docstring("pkg.counting.Public._private", "pkg.counting", "For the class alone.", ""),
        Docstring("pkg.counting._hidden", "pkg.counting", "For the module alone.", ""),
    ]
    assert [docstring.public for docstring in docstrings_of(path, "pkg._counting")] == [
        False,
        *[True] * 3,
        *[False] * 2,
    ]


def test_what_this_python_cannot_read_has_no_docstrings(tmp_path: Path) -> None:
    path = tmp_path / "old.py"
    path.write_text('"""Written for Python 2."""\nprint "hello"\n')
    assert docstrings_of(path, "old") == []


@pytest.mark.parametrize(
    ("docstring", "summary", "body"),
    [
        ("One line", "One line", ""),
        ("\n    Wrapped\n    over lines.\n\n    The rest\n    too.\n    ", "Wrapped over lines.", "The rest too."),
        ("First. Second one. Third.", "First.", "Second one. Third."),
        ("Takes e.g. a list of 3.5 m. Then more.", "Takes e.g. a list of 3.5 m.", "Then more."),
        (
            "Use :class:`~a.b.C` or :func:`the text <a.f>` with ``x``.\n\n"
            ".. versionadded:: 3.2\n\nParameters\n----------\nx : int",
            "Use a.b.C or the text with x.",
            "Parameters x : int",
        ),
    ],
)
def test_a_docstring_is_divided_after_its_first_sentence(docstring: str, summary: str, body: str) -> None:
    assert divide(docstring) == (summary, body)


def test_files_of_tests_and_copies_are_left_out_and_modules_named(tmp_path: Path) -> None:
    for name in (
        "__init__.py",
        "b.py",
        "a/__init__.py",
        "a/z.py",
        "a/tests/t.py",
        "models/m.py",
        "a/models/m.py",
        "a/x.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    found = [(str(path.relative_to(tmp_path)), module) for path, module in python_files(tmp_path, "transformers")]
    assert found == [
        ("__init__.py", "transformers"),
        ("b.py", "transformers.b"),
        ("a/__init__.py", "transformers.a"),
        ("a/z.py", "transformers.a.z"),
        ("a/models/m.py", "transformers.a.models.m"),
    ]


def test_standard_library_and_packages_are_read_by_workers_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("std/gz.py", "std/site-packages/other.py", "pure/rich/b.py", "pure/rich/a.py", "pure/stranger/c.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f'"""Text of {name}"""\n')
    paths = {"stdlib": str(tmp_path / "std"), "purelib": str(tmp_path / "pure")}
    monkeypatch.setattr(documentation.sysconfig, "get_paths", lambda: paths)
    before = set(sys.modules)
    found = read_docstrings(workers=1)
    assert [docstring.name for docstring in found] == ["gz", "rich.a", "rich.b"]
    assert not {"gz", "rich.a", "rich.b"} & (set(sys.modules) - before)


def test_topics_are_paragraphs_in_one_line() -> None:
    topics = read_topics()
    assert len(topics) > 500
    assert any("list comprehension" in topic.lower() for topic in topics)
    assert not any("\n" in topic or not topic for topic in topics)
    assert Path(sysconfig.get_paths()["stdlib"], "pydoc_data").is_dir()
