"""Build an environment with LangChain and LlamaIndex in build/integrations: `python scripts/integrations_env.py`.

Of its own, because what they allow of huggingface-hub and others would set the versions of everything else.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "integrations"
PYTHON = FOLDER / "bin" / "python"
PACKAGES = ("langchain-huggingface==1.2.3", "llama-index-embeddings-huggingface==0.8.0")
SAME = ("torch", "transformers", "sentence-transformers")
"""In the version that everything here is tested with: they compute the vectors."""
BUILT = FOLDER / "built"
"""What is installed; written last."""


def main() -> int:
    """Do what is not done yet; returns the exit code."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    same = [line for line in lines if line.split("==")[0] in SAME]
    pins = "\n".join([*same, *PACKAGES]) + "\n"
    if BUILT.exists() and BUILT.read_text(encoding="utf-8") == pins:
        print(f"{FOLDER.relative_to(ROOT)} is there already", file=sys.stderr)
        return 0
    venv.create(FOLDER, with_pip=True)
    install = [str(PYTHON), "-m", "pip", "install", "--quiet"]
    # torch first and by itself: an index that has it for CPUs alone is then not passed over for gigabytes of CUDA.
    for packages in ([line for line in same if line.startswith("torch==")], [*same, *PACKAGES]):
        subprocess.run([*install, *packages], check=True)
    BUILT.write_text(pins, encoding="utf-8")
    print(f"built {FOLDER.relative_to(ROOT)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
