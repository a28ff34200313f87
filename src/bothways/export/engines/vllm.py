"""vLLM, asked in a process of the Python that it is installed in: it pins lower what bothways needs newer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from bothways.errors import ConfigError, VerificationError

PYTHON = "BOTHWAYS_VLLM_PYTHON"
"""The environment variable that names the Python of the environment with vLLM."""
SCRIPT = Path(__file__).with_name("vllm_process.py")
QUIET = {
    # A folder is here; nothing is to be looked up, and nobody to be told.
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    # Otherwise it starts a process of its own and talks to it over ports.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # GiB of the CPU's memory for a cache that an encoder does not use.
    "VLLM_CPU_KVCACHE_SPACE": "1",
}


class VllmProcess:
    """A running vLLM, which opens one folder after another.

    `python` is the interpreter of the environment with vLLM; None: $BOTHWAYS_VLLM_PYTHON, or this one. `wrapper` stands
    before it on the command line. Raises ConfigError if there is no vLLM.
    """

    def __init__(self, python: str | Path | None = None, *, wrapper: Sequence[str] = ()) -> None:
        chosen = str(python or os.environ.get(PYTHON) or (sys.executable if find_spec("vllm") else ""))
        if not chosen:
            raise ConfigError(
                "vLLM is not installed beside bothways. Install it in an environment of its own and name that one's "
                f"Python: {PYTHON}=/path/to/bin/python. Or start its server, and verify the URL."
            )
        if not Path(chosen).is_file():
            raise ConfigError(f"{PYTHON}={chosen}: there is no such file. Name the Python that vLLM is installed in.")
        # Open as long as the process runs.
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        # -P: the folder of the script is no place to import from, it has files with names of packages.
        self._process = subprocess.Popen(
            [*wrapper, chosen, "-P", str(SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, **QUIET},
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to a request, see `vllm_process`. Raises VerificationError with vLLM's last words if it ends."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise VerificationError(f"vLLM does not serve {request['folder']}: {answer['error']}")
        return answer

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # It may have ended without reading what was written to it.
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def _ended(self) -> VerificationError:
        code = self._process.wait()
        self._log.seek(0)
        said = [line.strip() for line in self._log if line.strip()] or ["It said nothing."]
        return VerificationError(f"vLLM ended with exit code {code}: {said[-1]}")


class VllmEngine:
    """vLLM on a folder, in the folder's own number format.

    `process` is one that runs already, and goes on afterwards. Raises as VllmProcess does, and VerificationError if
    vLLM refuses the folder.
    """

    def __init__(
        self, folder: str | Path, *, python: str | Path | None = None, process: VllmProcess | None = None
    ) -> None:
        self.name = f"vLLM on {folder}"
        self.number_format = _dtype(Path(folder))
        self._asked = {"folder": str(folder), "dtype": self.number_format}
        self._own = None if process is not None else VllmProcess(python)
        self._process = process or self._own
        try:
            self.max_length: int | None = int(self._ask()["max_length"])
        except BaseException:
            self.close()
            raise

    def embed(self, texts: Sequence[str], /) -> np.ndarray:
        """One call of vLLM's `embed`, which packs the texts as it likes."""
        return np.array(self._ask(texts=list(texts))["vectors"], dtype=np.float32)

    def close(self) -> None:
        """Ends the process, if it is this engine's own."""
        if self._own is not None:
            self._own.close()

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process is not None
        return self._process.ask(**self._asked, **request)


def _dtype(folder: Path) -> str:
    """The number format of the weights, as config.json says: vLLM's "auto" would halve float32."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")
