"""Parity with the goldens of llm2vec 0.2.3: float32, CPU, the same attention backend on both sides, no dropout."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bothways import Encoder, convert
from bothways.pooling import pool

SHAPES = ["llama", "mistral"]
MODES = {
    "mean": "mean",
    "weighted_mean": "weighted_mean",
    "last_token": "last",
    "eos_token": "last",
    "bos_token": "cls",
}
SAME_KERNELS = 1e-6 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 1e-5
"""The goldens are of a processor with AVX-512; where there is none, the same kernels sum in another order: 4e-6."""
SEAM = {0, 10}
"""Pairs whose text has another number of tokens alone than behind an instruction; the reference pools that many."""
CUT_WITH_INSTRUCTION = 6
"""The pair whose text is cut at 64 tokens together with its instruction; the reference pools part of the latter."""


@pytest.fixture(scope="module", params=SHAPES)
def golden(request: pytest.FixtureRequest, shared: Path) -> dict[str, Any]:
    folder = shared / "reference" / "golden" / request.param
    return {
        "folder": folder,
        "arrays": np.load(folder / "golden.npz"),
        **json.loads((folder / "golden.json").read_text()),
    }


def inputs(golden: dict[str, Any], kind: str) -> tuple[list[str], list[str] | None]:
    if kind == "noinst":
        return golden["texts"], None
    return [text for _, text in golden["pairs"]], [instruction for instruction, _ in golden["pairs"]]


def shortened(encoder: Encoder, text: str, limit: int) -> str:
    """What the reference reads of a long text: words are dropped from its end until `limit` tokens are left."""
    while (
        count := len(encoder.tokenizer(text, add_special_tokens=False)["input_ids"][: encoder.settings.max_length])
    ) > limit:
        words = text.split()
        text = " ".join(words[: int(len(words) * limit / count)])
    return text


@pytest.mark.parametrize(("backend", "tolerance"), [("sdpa", SAME_KERNELS), ("eager", 1e-5)])
def test_single_texts(golden: dict[str, Any], backend: str, tolerance: float) -> None:
    encoder = convert(golden["folder"], attn_implementation=backend)
    compared = 0
    for kind in ("noinst", "inst"):
        texts, instructions = inputs(golden, kind)
        for number, row in enumerate(encoder.tokenise(texts, instructions)):
            assert row.ids == golden["arrays"][f"single_{kind}_{number}_ids"].ravel().tolist()
            if f"single_{kind}_{number}_hidden" in golden["arrays"]:
                expected = golden["arrays"][f"single_{kind}_{number}_hidden"]
                with torch.no_grad():
                    found = encoder.hidden_states(encoder.collate([row])).numpy()
                assert np.abs(found - expected).max() <= tolerance
                compared += 1
    assert compared == 10


@pytest.mark.parametrize("kind", ["noinst", "inst"])
@pytest.mark.filterwarnings("ignore:.*were cut:UserWarning")
def test_vectors(golden: dict[str, Any], kind: str) -> None:
    encoder = convert(golden["folder"], normalize=False)
    texts, instructions = inputs(golden, kind)
    texts = [shortened(encoder, text, 400) for text in texts]
    for mode, pooling in MODES.items():
        for skip in (0, 1):
            check_vectors(golden, encoder, mode, pooling, skip, texts, instructions)


def check_vectors(
    golden: dict[str, Any],
    encoder: Encoder,
    mode: str,
    pooling: str,
    skip: int,
    texts: list[str],
    instructions: list[str] | None,
) -> None:
    # The reference's "bos_token" is the beginning-of-sequence token whether or not instructions are skipped.
    pool_over = "text" if skip and mode != "bos_token" else "all"
    encoder.settings = replace(encoder.settings, pooling=pooling, pool_over=pool_over)
    kind = "noinst" if instructions is None else "inst"
    if mode == "eos_token":
        texts = [text.rstrip() + " </s>" for text in texts]
    found = encoder.encode(texts, instruction=instructions, tokens_per_batch=64)
    expected = golden["arrays"][f"enc_{mode}_skip{skip}_{kind}"]
    same = np.abs(found - expected).max(axis=1) <= 1e-5
    off_by_one = mode in ("mean", "weighted_mean") and skip and kind == "inst"
    assert same.tolist() == [not (off_by_one and number in SEAM) for number in range(len(texts))]


def test_the_reference_starts_one_token_late_where_tokens_merge(golden: dict[str, Any]) -> None:
    encoder = convert(golden["folder"], normalize=False, pool_over="text")
    instruction, text = golden["pairs"][min(SEAM)]
    features = encoder.collate(encoder.tokenise([text], instruction))
    late = features.pool_mask.clone()
    late[0, int(late[0].int().argmax())] = False
    with torch.no_grad():
        found = pool(encoder.hidden_states(features), late, "mean").numpy()
    assert np.abs(found - golden["arrays"]["enc_mean_skip1_inst"][min(SEAM)]).max() <= 1e-5


@pytest.mark.filterwarnings("ignore:.*were cut:UserWarning")
def test_truncation(golden: dict[str, Any]) -> None:
    encoder = convert(golden["folder"], normalize=False, pool_over="text", max_length=64)
    texts, instructions = inputs(golden, "inst")
    texts = [shortened(encoder, text, 40) for text in texts]
    found = encoder.encode(texts, instruction=instructions, tokens_per_batch=64)
    difference = np.abs(found - golden["arrays"]["enc_mean_trunc64_40_inst"]).max(axis=1)
    assert (difference <= 1e-5).tolist() == [
        number not in (min(SEAM), CUT_WITH_INSTRUCTION) for number in range(len(texts))
    ]
