"""Build the environment of the peer llm2vec 0.2.3 in build/llm2vec: `python -m benchmarks.llm2vec_env`."""

from __future__ import annotations

import subprocess
import sys
import venv

from benchmarks.frame import ROOT

FOLDER = ROOT / "build" / "llm2vec"
PYTHON = FOLDER / "bin" / "python"
PINS = ROOT / "benchmarks" / "peers" / "llm2vec-constraints.txt"
BUILT = FOLDER / "built"
"""A copy of the pins that are installed; written last."""


def main() -> int:
    """Do what is not done yet; returns the exit code."""
    pins = PINS.read_text(encoding="utf-8")
    if BUILT.exists() and BUILT.read_text(encoding="utf-8") == pins:
        print(f"{FOLDER.relative_to(ROOT)} is there already", file=sys.stderr)
        return 0
    venv.create(FOLDER, with_pip=True)
    install = [str(PYTHON), "-m", "pip", "install", "--quiet", "--constraint", str(PINS)]
    # torch first and by itself: an index that has it for CPUs alone is then not passed over for gigabytes of CUDA.
    for packages in (["torch"], ["llm2vec", "transformers"]):
        subprocess.run([*install, *packages], check=True)
    BUILT.write_text(pins, encoding="utf-8")
    print(f"built {FOLDER.relative_to(ROOT)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
