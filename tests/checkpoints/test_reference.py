"""Parity: whole stacks that llm2vec 0.2.3 itself made, in its own environment, load with its vectors.

float32, CPU, sdpa on both sides, no dropout, one thread.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from bothways import Encoder
from bothways.bidirectional.attention import prepare
from bothways.references import LLM2VecConfig, as_it_reads
from bothways.text import framed

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / "build" / "llm2vec" / "bin" / "python"
WORKER = Path(__file__).with_name("reference_worker.py")
LLAMA_3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
CASES: list[dict[str, Any]] = [
    {
        "name": "llama-3-instruct",
        "family": "Llama",
        "base": "meta-llama/Meta-Llama-3-8B-Instruct",
        "marks": LLAMA_3,
        "has_bos": True,
        "settings": {},
    },
    {
        "name": "llama-first",
        "family": "Llama",
        "base": "./llama",
        "marks": ["<s>", "</s>"],
        "has_bos": True,
        "settings": {"pooling_mode": "bos_token"},
    },
    {
        "name": "mistral-instruct",
        "family": "Mistral",
        "base": "mistralai/Mistral-7B-Instruct-v0.2",
        "marks": ["<s>", "</s>"],
        "has_bos": True,
        "settings": {"pooling_mode": "eos_token", "max_length": 300, "doc_max_length": 200},
        "shape": {"sliding_window": 4},
    },
    {
        "name": "gemma",
        "family": "Gemma",
        "base": "./gemma",
        "marks": ["<bos>", "<eos>"],
        "has_bos": True,
        "settings": {"pooling_mode": "weighted_mean", "skip_instruction": False},
    },
    {
        "name": "gemma-end",
        "family": "Gemma",
        "base": "./gemma-2",
        "marks": ["<bos>", "<eos>"],
        "has_bos": True,
        "settings": {"pooling_mode": "eos_token"},
    },
    {
        "name": "qwen2-instruct",
        "family": "Qwen2",
        "base": "Qwen/Qwen2-1.5B-Instruct",
        "marks": ["<|endoftext|>", "<|im_end|>", "<|im_start|>"],
        "has_bos": False,
        "settings": {},
    },
]
NAMES = [case["name"] for case in CASES]
INSTRUCTION = "Given a question, retrieve passages that answer it: "
pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore:.*were cut:UserWarning")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, real_texts: list[str]) -> Path:
    if not PYTHON.exists():
        pytest.skip("the reference's environment is not there: python -m benchmarks.llm2vec_env")
    room = tmp_path_factory.mktemp("made")
    texts = [*real_texts[:5], " spaces on both sides \n", "Grüße, 你好 😀", "a", " ".join(real_texts[5:20])]
    request = {
        "cases": CASES,
        "corpus": real_texts[:300],
        "texts": texts,
        "pairs": [[INSTRUCTION, text] for text in texts[:-1]],
    }
    (room / "request.json").write_text(json.dumps(request))
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(room / "hub"), "TOKENIZERS_PARALLELISM": "false"}
    command = [str(PYTHON), str(WORKER), str(room)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | offline)
    assert done.returncode == 0, done.stderr[-3000:]
    return room


@pytest.fixture(autouse=True)
def _hub(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub as the reference's process had it: no network, and a cache with the decoders."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(made / "hub"))


def check(encoder: Encoder, vectors: Any, stack: str, request: dict[str, Any], said: LLM2VecConfig) -> float:
    """Equal wherever the reference pools as many tokens as it finds in a text alone; returns the largest difference."""
    texts = [as_it_reads(encoder.tokenizer, text, said) for text in request["texts"]]
    plain = encoder.encode(texts)
    alone = float(np.abs(plain - vectors[f"{stack}/alone"]).max())
    padded = float(np.abs(plain - vectors[f"{stack}/padded"]).max())
    # Left padding moves the reference's positions, and with them the rounding of its rotations.
    assert (alone <= 1e-5, padded <= 2e-5) == (True, True), (alone, padded)
    difference = np.abs(encoder.encode(texts[:-1], instruction=INSTRUCTION) - vectors[f"{stack}/instructed"]).max(
        axis=1
    )
    seam = [counts_another_number(encoder, text) for text in texts[:-1]]
    assert [bool(one <= 1e-5) for one in difference] == [not other for other in seam], difference
    assert not all(seam)
    return alone


def counts_another_number(encoder: Encoder, text: str) -> bool:
    """Whether a text has another number of tokens alone than behind the instruction; the reference pools that many."""
    settings = encoder.settings
    if settings.pool_over == "all" or settings.pooling not in ("mean", "weighted_mean"):
        return False
    [cut], [(_, after)] = framed(settings.text_template, [text], [("", "")])
    alone = encoder.tokenizer(cut + after, add_special_tokens=False)["input_ids"]
    return len(alone) != sum(encoder.tokenise([text], INSTRUCTION)[0].pooled)


def asked(made: Path, case: dict[str, Any]) -> tuple[dict[str, Any], LLM2VecConfig]:
    return json.loads((made / "request.json").read_text()), LLM2VecConfig(**case["settings"])


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_stacks_of_the_reference_give_its_vectors(made: Path, case: dict[str, Any]) -> None:
    room = made / case["name"]
    vectors = np.load(room / ("vectors-open.npz" if case["family"] == "Qwen2" else "vectors.npz"))
    request, said = asked(made, case)
    stacks = {
        "both": Encoder.from_pretrained(room / "mntp", adapter=room / "mntp-supervised"),
        "whole": Encoder.from_pretrained(room / "whole"),
    }
    if not case["settings"]:
        # The MNTP folder says nothing of settings, and the reference was told: with others it was not the defaults'.
        stacks["mntp"] = Encoder.from_pretrained(room / "mntp")
    for stack, encoder in stacks.items():
        check(encoder, vectors, stack, request, said)
        assert encoder.record.certificate is not None
        assert encoder.record.certificate.direction == "bidirectional"
    assert np.abs(vectors["mntp/alone"] - vectors["both/alone"]).max() > 0.1


def test_its_qwen2_is_causal_on_the_cpu(made: Path) -> None:
    """Everything else is the same: the weights, the adapters, the template, what is pooled."""
    case = CASES[-1]
    room = made / case["name"]
    request, said = asked(made, case)
    encoder = Encoder.from_pretrained(room / "mntp", adapter=room / "mntp-supervised")
    causal = np.load(room / "vectors.npz")
    assert np.abs(encoder.encode(request["texts"][:5]) - causal["both/alone"][:5]).max() > 0.01
    encoder.settings = replace(encoder.settings, direction="causal")
    prepare(encoder.model.config, "causal")
    check(encoder, causal, "both", request, said)


def test_by_the_names_on_the_hub(made: Path) -> None:
    case = CASES[0]
    name = "McGill-NLP/LLM2Vec-Meta-Llama-3-8B-Instruct-mntp"
    for kind in ("mntp", "mntp-supervised"):
        repository = made / "hub" / f"models--{name.replace('/', '--').removesuffix('-mntp')}-{kind}"
        if not repository.exists():
            shutil.copytree(made / case["name"] / kind, repository / "snapshots" / "7")
            (repository / "refs").mkdir()
            (repository / "refs" / "main").write_text("7")
    request, said = asked(made, case)
    encoder = Encoder.from_pretrained(name, adapter=f"{name}-supervised")
    check(encoder, np.load(made / case["name"] / "vectors.npz"), "both", request, said)
    assert encoder.record.base == case["base"]
    assert [stage.get("name") for stage in encoder.record.stages[1:]] == [name, f"{name}-supervised"]
    assert encoder.settings.text_template.startswith("<|start_header_id|>user")


def test_a_folder_of_ours_keeps_its_vectors(made: Path, tmp_path: Path) -> None:
    room = made / CASES[0]["name"]
    encoder = Encoder.from_pretrained(room / "whole")
    encoder.save_pretrained(tmp_path / "mine")
    again = Encoder.from_pretrained(tmp_path / "mine")
    texts = json.loads((made / "request.json").read_text())["texts"]
    np.testing.assert_allclose(again.encode(texts), encoder.encode(texts), rtol=0, atol=1e-6)
    assert AutoTokenizer.from_pretrained(tmp_path / "mine")("a text")["input_ids"][0] == 0
