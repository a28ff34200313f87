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
PACKAGES = ["llama-cpp-python==0.3.36", "numpy>=2.4"]
BUILT = FOLDER / "built"
"""The packages that are installed; written last."""
OPTIONS = {
    "LLAVA_BUILD": "OFF",
    "LLAMA_BUILD_COMMON": "OFF",
    "LLAMA_BUILD_TOOLS": "OFF",
    "LLAMA_BUILD_SERVER": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_CURL": "OFF",
}
"""Only the library is built: what a vector needs is in it."""


def main() -> int:
    """Do what is not done yet; returns the exit code."""
    asked = "\n".join(PACKAGES)
    if BUILT.exists() and BUILT.read_text(encoding="utf-8") == asked:
        print(f"{FOLDER.relative_to(ROOT)} is there already", file=sys.stderr)
        return 0
    venv.create(FOLDER, with_pip=True)
    options = " ".join(f"-D{name}={value}" for name, value in OPTIONS.items())
    environment = {"CMAKE_BUILD_PARALLEL_LEVEL": "1"} | os.environ | {"CMAKE_ARGS": options}
    install = [str(PYTHON), "-m", "pip", "install", "--no-binary", "llama-cpp-python", *PACKAGES]
    subprocess.run(install, check=True, env=environment)
    BUILT.write_text(asked, encoding="utf-8")
    print(f"built {FOLDER.relative_to(ROOT)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
