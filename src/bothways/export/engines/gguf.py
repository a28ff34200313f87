"""llama.cpp, asked for the vectors of a GGUF file as it is: pooling and direction come from the file's keys."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from bothways.errors import ConfigError, DataError, VerificationError
from bothways.export.gguf_file import MAX_LENGTH, NORMALIZE, GgufFile

WORKER = Path(__file__).with_name("llama_worker.py")
VARIABLE = "BOTHWAYS_LLAMA_CPP_PYTHON"
WAY_OUT = (
    "Install it with `pip install llama-cpp-python`, which compiles it, or name the Python of an environment that has "
    f"it in {VARIABLE}"
)
UNREAD = 512
"""Tokens read of a text where the file does not say how many."""


def interpreter() -> str | None:
    """A Python that can import llama_cpp: this one, or the one that the environment names."""
    named = os.environ.get(VARIABLE)
    if named:
        _check_interpreter(named)
        return named
    return sys.executable if find_spec("llama_cpp") is not None else None


@cache
def _check_interpreter(python: str) -> None:
    try:
        subprocess.run([python, "-c", "import llama_cpp"], check=True, capture_output=True, text=True)
    except OSError as error:
        raise ConfigError(f"{VARIABLE}={python} cannot be run: {error}. Name a Python that has llama_cpp.") from error
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigError(f"{VARIABLE}={python} cannot import llama_cpp: {last}.") from error


class GgufEngine:
    """llama.cpp on a file, in a process of its own: it ends its process where a file is not what it expects.

    Raises VerificationError if the file lacks a key that decides what a vector is, ConfigError without llama.cpp,
    DataError if it does not open the file.
    """

    def __init__(self, path: str | Path, *, python: str | None = None) -> None:
        file = GgufFile(path)
        file.require_keys()
        self._python = python or interpreter()
        if self._python is None:
            raise ConfigError(
                f"Asking llama.cpp for vectors needs its Python package. {WAY_OUT}. What can be told of {path} without "
                f"it: it says {file.architecture}.attention.causal={file.own('attention.causal')} and "
                f"pooling_type={file.own('pooling_type')}."
            )
        self.name = f"llama.cpp on {path}"
        trained = int(file.own("context_length") or UNREAD)
        self.max_length: int | None = min(int(file.keys.get(MAX_LENGTH, trained)), trained)
        # llama.cpp keeps keys and values in half precision, whatever the weights are in.
        self.number_format = "float16" if file.number_format == "float32" else file.number_format
        self._path = Path(path)
        self._normalize = bool(file.keys.get(NORMALIZE, True))
        self._process = self._start()
        self._ask({"do": "open", "file": str(Path(path).resolve()), "tokens": max(self.max_length, 512)})

    def embed(self, texts: Sequence[str], /) -> np.ndarray:
        """One call, which llama.cpp computes together as far as its batch goes.

        Of unit length, as its server returns them, unless the file says that the encoder's are not.
        """
        found = np.asarray(self._ask({"do": "embed", "texts": list(texts)}), dtype=np.float32)
        if not self._normalize or found.ndim != 2:
            return found
        norms = np.linalg.norm(found, axis=1, keepdims=True)
        scaled: np.ndarray = np.divide(found, norms, out=np.zeros_like(found), where=norms > 0)
        return scaled

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """What llama.cpp cuts texts into."""
        found: list[list[int]] = self._ask({"do": "tokens", "texts": list(texts)})
        return found

    def close(self) -> None:
        """Ends the process."""
        if self._process.poll() is None:
            self._process.stdin.close()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            pipe.close()

    def _start(self) -> Any:
        return subprocess.Popen(
            [str(self._python), "-P", str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )

    def _ask(self, question: dict[str, Any]) -> Any:
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._process.wait()
            raise VerificationError(
                f"llama.cpp ended with code {self._process.returncode} when asked to {question['do']} with "
                f"{self._path}: the file is not what it expects of a {self.number_format} model."
            )
        answer = json.loads(line)
        if "error" in answer:
            self.close()
            raise DataError(f"{self._path}: llama.cpp does not {question['do']}: {answer['error']}")
        return answer["found"]
