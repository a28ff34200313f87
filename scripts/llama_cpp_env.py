"""Build llama.cpp with its Python binding in build/llama-cpp: `python scripts/llama_cpp_env.py`.

The engine tests of the GGUF target run it there. It is compiled from the source on the package index, once: 20 to 40
minutes on one core.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "llama-cpp"
PYTHON = FOLDER / "bin" / "python"
VERSION = "0.3.36"
OPTIONS = {
    "LLAVA_BUILD": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_SERVER": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_CURL": "OFF",
    "GGML_OPENMP": "OFF",
}
"""Only the library is built: what a vector needs is in it."""


def main() -> int:
    """Do what is not done yet; returns the exit code."""
    if installed() == VERSION:
        print(f"{FOLDER.relative_to(ROOT)} is there already", file=sys.stderr)
        return 0
    venv.create(FOLDER, with_pip=True)
    options = " ".join(f"-D{name}={value}" for name, value in OPTIONS.items())
    environment = {"CMAKE_BUILD_PARALLEL_LEVEL": "1"} | os.environ | {"CMAKE_ARGS": options}
    install = [str(PYTHON), "-m", "pip", "install", "--quiet", "--no-binary", "llama-cpp-python"]
    subprocess.run([*install, f"llama-cpp-python=={VERSION}"], check=True, env=environment)
    print(f"built {FOLDER.relative_to(ROOT)}", file=sys.stderr)
    return 0


def installed() -> str | None:
    """The version that is there and can be imported, or None."""
    if not PYTHON.exists():
        return None
    asked = [str(PYTHON), "-c", "import llama_cpp; print(llama_cpp.__version__)"]
    found = subprocess.run(asked, check=False, capture_output=True, text=True)
    return found.stdout.strip() if found.returncode == 0 else None


if __name__ == "__main__":
    sys.exit(main())
