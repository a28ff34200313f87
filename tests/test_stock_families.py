"""Parity: plain sentence-transformers that cannot import bothways gives an encoder's vectors, in many families."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bidirectional.tiny import TINY, tiny

from bothways import Encoder, convert

# Texts of one and of many tokens, beyond the window of 4 that those have which have one.
TEXTS = [
    "a",
    "How do I open a compressed file?",
    "The zipfile module reads and writes archives of files, some of which are encrypted; see also tarfile.",
]
BOTH = (
    "cohere", "falcon", "gemma", "gemma3_text", "glm", "gpt2", "gpt_neox", "granite", "llama", "mistral", "olmo2",
    "opt", "phi", "phi3", "qwen2", "qwen3", "smollm3", "starcoder2",
)  # fmt: skip
"""Right under eager and sdpa."""
BY_KEY = ("gemma2", "nemotron", "stablelm")
"""Right as the folder says, which is eager."""
MORE = ("apertus", "biogpt", "cohere2", "gpt_bigcode", "llama4_text", "mixtral", "persimmon", "qwen3_moe")
MORE_BY_KEY = ("codegen", "gpt_oss", "gptj")
PLAIN = """
import json, sys
from importlib.abc import MetaPathFinder

class Blocked(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "bothways":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
try:
    import bothways
except ModuleNotFoundError:
    pass
else:
    sys.exit("bothways can be imported")

import numpy as np, torch
from sentence_transformers import SentenceTransformer
torch.set_num_threads(1)
asked, found = json.loads(sys.stdin.read()), {}
for folder, backend in asked["cases"]:
    kwargs = {"attn_implementation": backend} if backend else {}
    model = SentenceTransformer(folder, device="cpu", model_kwargs=kwargs)
    found[f"{folder}|{backend}|padded"] = model.encode(asked["texts"], batch_size=8)
    found[f"{folder}|{backend}|alone"] = np.stack([model.encode(text) for text in asked["texts"]])
assert not any(name.split(".")[0] == "bothways" for name in sys.modules)
np.savez(sys.argv[1], **found)
"""


def made(name: str, tokenizer_of: Path, folder: Path) -> tuple[Encoder, Encoder]:
    """The encoder of a tiny random decoder, saved beside it, and its causal twin."""
    shape = {"vocab_size": 501, "max_position_embeddings": 256, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 1}
    tiny(name, TINY[name].backends[-1], head=True, **shape).save_pretrained(folder)
    for file in tokenizer_of.glob("*token*"):
        shutil.copy(file, folder / file.name)
    # llama4's head stands beside a model that is one of several there.
    how: Any = {"dtype": "float32", "device": "cpu", "head": name != "llama4_text"}
    encoder = convert(folder, **how)
    encoder.save_pretrained(folder / "enc")
    return encoder, convert(folder, **how, direction="causal")


def compare(both: tuple[str, ...], by_key: tuple[str, ...], tokenizer_of: Path, tmp_path: Path) -> None:
    backends = dict.fromkeys(both, ("eager", "sdpa")) | dict.fromkeys(by_key, ("",))
    own, causal = {}, {}
    for name, kinds in backends.items():
        encoder, twin = made(name, tokenizer_of, tmp_path / name)
        for backend in kinds:
            encoder.model.set_attn_implementation(backend or "eager")
            own[str(tmp_path / name / "enc"), backend] = encoder.encode(TEXTS)
        causal[str(tmp_path / name / "enc")] = twin.encode(TEXTS)
    request = json.dumps({"cases": list(own), "texts": TEXTS})
    command = [sys.executable, "-c", PLAIN, str(tmp_path / "found.npz")]
    done = subprocess.run(command, input=request, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = np.load(tmp_path / "found.npz")
    differences = {
        (Path(folder).parent.name, backend or "as the folder says", how): np.abs(
            found[f"{folder}|{backend}|{how}"] - vectors
        ).max()
        for (folder, backend), vectors in own.items()
        for how in ("padded", "alone")
    }
    assert len(differences) == 4 * len(both) + 2 * len(by_key)
    print(f"largest difference of {len(differences)}: {max(differences.values()):.1e}")
    assert {case: float(worst) for case, worst in differences.items() if not worst <= 1e-6} == {}
    for (folder, _), vectors in own.items():
        # Of one token there is no future: the beginning of the sequence and "a" are two.
        assert np.abs(causal[folder] - vectors).max() > 1e-3, folder


def test_at_least_fourteen_families_padded_and_alone_eager_and_sdpa(tiny_llama_folder: Path, tmp_path: Path) -> None:
    assert len(BOTH) >= 14
    compare(BOTH, BY_KEY, tiny_llama_folder, tmp_path)


@pytest.mark.slow
def test_more_families(tiny_llama_folder: Path, tmp_path: Path) -> None:
    compare(MORE, MORE_BY_KEY, tiny_llama_folder, tmp_path)
