"""The documentation that every installation has: docstrings and pydoc's topics.

Docstrings of the standard library and of the packages that bothways depends on are read from their source with `ast`,
and pydoc's topics as a literal: nothing is imported, so nothing is run. The same versions give the same texts.
"""

from __future__ import annotations

import ast
import inspect
import multiprocessing
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

PACKAGES = (
    "accelerate", "click", "filelock", "fsspec", "huggingface_hub", "jaxtyping", "jinja2", "joblib", "mpmath",
    "networkx", "numpy", "packaging", "peft", "psutil", "pyarrow", "pygments", "rich", "safetensors", "scipy",
    "sklearn", "sympy", "tokenizers", "torch", "tqdm", "transformers", "typer", "tyro", "yaml",
)  # fmt: skip
"""bothways needs these, itself or through what it needs; one that is not there is left out."""
LEFT_OUT = {
    "tests", "test", "testing", "_vendor", "vendored", "externals", "site-packages", "dist-packages", "__pycache__",
    "idlelib", "lib2to3", "turtledemo", "ensurepip",
}  # fmt: skip
"""Folders of tests, of other people's code, and of what documents nothing."""
LEFT_OUT_MODULES = {"transformers.models", "torch._inductor", "torch._dynamo", "torch._functorch", "torch._export"}
"""Hundreds of copies of one text, and a compiler's insides: half of all source, which would take half of the time."""
CHUNK = 16


@dataclass(frozen=True)
class Docstring:
    """The docstring of `name` ("gzip.GzipFile.read") in `module` ("gzip"): its first sentence and the rest."""

    name: str
    module: str
    summary: str
    body: str

    @property
    def public(self) -> bool:
        """Whether a user would look for it."""
        return not self.name.rpartition(".")[2].startswith("_")


def read_docstrings(workers: int = 2) -> list[Docstring]:
    """All docstrings, markup dropped, in the order of the files' names."""
    paths = sysconfig.get_paths()
    standard, installed = Path(paths["stdlib"]), Path(paths["purelib"])
    files = list(python_files(standard, ""))
    for package in PACKAGES:
        files += python_files(installed / package, package)
    # A started process inherits nothing, where a forked one would inherit the locks of torch's threads.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.map(docstrings_of, *zip(*files, strict=True), chunksize=CHUNK)
        return [docstring for of_file in found for docstring in of_file]


def read_topics() -> list[str]:
    """The paragraphs of pydoc's help topics, each in one line."""
    source = Path(sysconfig.get_paths()["stdlib"], "pydoc_data", "topics.py").read_text(encoding="utf-8")
    (assignment,) = (node for node in ast.parse(source).body if isinstance(node, ast.Assign))
    topics: dict[str, str] = ast.literal_eval(assignment.value)
    return [_one_line(part) for name in sorted(topics) for part in topics[name].split("\n\n") if part.strip()]


def python_files(root: Path, package: str) -> Iterator[tuple[Path, str]]:
    """Source files under `root` and the names of their modules, in order."""
    for folder, inner, files in os.walk(root):
        within = [package, *Path(folder).relative_to(root).parts]
        module = ".".join(part for part in within if part)
        inner[:] = sorted(name for name in inner if name not in LEFT_OUT and f"{module}.{name}" not in LEFT_OUT_MODULES)
        for file in sorted(files):
            if file.endswith(".py"):
                parts = [module] if file == "__init__.py" else [module, file.removesuffix(".py")]
                yield Path(folder, file), ".".join(part for part in parts if part)


def docstrings_of(path: Path, module: str) -> list[Docstring]:
    """The docstrings of one file; none if it is no Python that this version reads."""
    source = path.read_bytes()
    if source.count(b'"""') < 2 and source.count(b"'''") < 2:
        return []
    try:
        with warnings.catch_warnings():
            # Other people's invalid escapes are not this user's business.
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return []
    return [Docstring(name, module, *divide(text)) for name, text in _walk(tree, module)]


def _walk(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """Names and docstrings of a module and of the classes and functions in it, but not inside functions."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node, clean=False)
        if text and text.strip():
            yield name, text
    if isinstance(node, ast.Module | ast.ClassDef):
        for inner in node.body:
            if isinstance(inner, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _walk(inner, f"{name}.{inner.name}")


_DIRECTIVE = re.compile(r"^\s*\.\. [a-z-]+::.*$", re.MULTILINE)
_RULE = re.compile(r"^\s*[-=~^*+#_.]{3,}\s*$", re.MULTILINE)
_ROLE = re.compile(r":[a-z:+]+:`~?([^`<]*?)\s*(?:<[^>`]*>)?`")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`\"'(])")


def divide(docstring: str) -> tuple[str, str]:
    """The first sentence of a docstring and all that follows it, markup dropped, each in one line."""
    text = _RULE.sub("", _DIRECTIVE.sub("", inspect.cleandoc(docstring)))
    text = _ROLE.sub(r"\1", text).replace("`", "").replace("**", "").strip()
    opening, _, rest = text.partition("\n\n")
    sentences = _SENTENCE_END.split(_one_line(opening), maxsplit=1)
    return sentences[0], _one_line(" ".join([*sentences[1:], rest]))


def _one_line(text: str) -> str:
    return " ".join(text.split())
