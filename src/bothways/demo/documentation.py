"""The documentation that every installation has -> unlabelled texts and (summary, rest) pairs, split by module.

Docstrings of the standard library and of the packages that bothways depends on are read from their source with `ast`,
and pydoc's topics as a literal: nothing is imported, so nothing is run. The same versions give the same pairs.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import sysconfig
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

PACKAGES = (
    "accelerate", "datasets", "fsspec", "huggingface_hub", "jinja2", "joblib", "mpmath", "networkx", "numpy", "packaging",
    "pandas", "peft", "psutil", "pyarrow", "rich", "scipy", "sklearn", "sympy", "torch", "tqdm", "transformers",
)  # fmt: skip
"""bothways needs these, itself or through what it needs; one that is not there is left out."""
LEFT_OUT = {
    "tests", "test", "testing", "_vendor", "vendored", "externals", "site-packages", "dist-packages", "__pycache__",
    "idlelib", "lib2to3", "turtledemo", "ensurepip",
}  # fmt: skip
"""Folders of tests, of other people's code, and of what has no documentation."""


@dataclass(frozen=True)
class Docstring:
    """The docstring of `name` ("gzip.GzipFile.read"): its first sentence and the rest, each in one line."""

    name: str
    module: str
    summary: str
    body: str


def read_docstrings(workers: int = 2) -> list[Docstring]:
    """Every docstring of the standard library and of PACKAGES, in the order of the files' names."""
    places = [(path, module) for path, module in _sources() if _may_document(path)]
    with ProcessPoolExecutor(workers) as pool:
        found = pool.map(_docstrings, *zip(*places, strict=True), chunksize=16)
        return [docstring for of_file in found for docstring in of_file]


def _sources() -> Iterator[tuple[Path, str]]:
    paths = sysconfig.get_paths()
    standard, installed = Path(paths["stdlib"]), Path(paths["purelib"])
    yield from _python_files(standard, "")
    for package in PACKAGES:
        yield from _python_files(installed / package, package)


def _python_files(root: Path, package: str) -> Iterator[tuple[Path, str]]:
    for folder, inner, files in os.walk(root):
        inner[:] = sorted(set(inner) - LEFT_OUT)
        for file in sorted(files):
            if file.endswith(".py"):
                path = Path(folder, file)
                parts = [*package.split("."), *path.relative_to(root).with_suffix("").parts]
                yield path, ".".join(part for part in parts if part not in ("", "__init__"))


def _may_document(path: Path) -> bool:
    return path.stat().st_size > 200


def _docstrings(path: Path, module: str) -> list[Docstring]:
    source = path.read_bytes()
    if source.count(b'"""') < 2 and source.count(b"'''") < 2:
        return []
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return []
    found = []
    for name, text in _walk(tree, module):
        summary, body = divide(text)
        if summary:
            found.append(Docstring(name, module, summary, body))
    return found


def _walk(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """Names and docstrings of a module and of the classes and functions in it, functions inside functions left out."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node, clean=False)
        if text:
            yield name, text
    if isinstance(node, ast.Module | ast.ClassDef):
        for inner in node.body:
            if isinstance(inner, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _walk(inner, f"{name}.{inner.name}")


ROLE = re.compile(r":[a-z:+]+:`~?([^`<]*?)\s*(?:<[^>`]*>)?`")
DIRECTIVE = re.compile(r"^\s*\.\. [a-z-]+::.*$", re.MULTILINE)
RULE = re.compile(r"^\s*[-=~^*+#_.]{3,}\s*$", re.MULTILINE)
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z`\"'(])")


def divide(docstring: str) -> tuple[str, str]:
    """The first sentence of a docstring and all that follows it, markup dropped, each in one line."""
    text = RULE.sub("", DIRECTIVE.sub("", inspect.cleandoc(docstring)))
    text = ROLE.sub(r"\1", text).replace("`", "").replace("**", "")
    first, _, rest = text.strip().partition("\n\n")
    sentences = SENTENCE.split(_one_line(first), maxsplit=1)
    return sentences[0], _one_line(" ".join([*sentences[1:], rest]))


def _one_line(text: str) -> str:
    return " ".join(text.split())
