"""Parity with vLLM itself, on CPU, without network: the allow-list is right both ways, and what is not on it is not."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export.servable import OWN, SHAPE, WINDOW, decoder

from bothways import Encoder, convert
from bothways.engines import VLLM
from bothways.errors import VerificationError
from bothways.export.engines.vllm import VllmEngine, VllmProcess
from bothways.export.serving.vllm import write
from bothways.export.verdict import Verdict
from bothways.export.verify import verify
from bothways.vllm_plugin import ARCHITECTURE

# A model takes seconds to start, and this process minutes on a busy machine.
pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]
BUILD = Path(__file__).resolve().parents[2] / "build" / "vllm"
PROMPTS = {"query": "Find the passage that answers this: "}
ALONE = ("unshare", "--net", "--map-root-user", "--")
"""A network of its own that leads nowhere."""


@pytest.fixture(scope="module")
def vllm() -> Iterator[VllmProcess]:
    """One vLLM for all tests, with nothing to reach but itself where the machine allows that."""
    if not (BUILD / "built").exists():
        pytest.skip("vLLM is not built. Build it once: python scripts/vllm_env.py")
    alone = subprocess.run([*ALONE, "ip", "link", "set", "lo", "up"], capture_output=True, check=False).returncode == 0
    wrapper: Sequence[str] = (*ALONE, "sh", "-c", 'ip link set lo up && exec "$@"', "vllm") if alone else ()
    process = VllmProcess(BUILD / "bin" / "python", wrapper=wrapper)
    yield process
    process.close()


@pytest.fixture
def encoder(tiny_llama_folder: Path, tmp_path: Path) -> Any:
    def make(family: str, **changes: Any) -> Encoder:
        base = decoder(family, tiny_llama_folder, tmp_path / "base")
        return convert(base, dtype="float32", device="cpu", **{"max_length": 120, "prompts": PROMPTS, **changes})

    return make


def judged(folder: Path, vllm: VllmProcess) -> Verdict:
    return verify(VllmEngine(folder, process=vllm), folder, tolerance=1e-5, device="cpu")


@pytest.mark.parametrize("family", sorted(VLLM.families))
def test_the_allow_list_is_right_and_not_causal(family: str, encoder: Any, vllm: VllmProcess, tmp_path: Path) -> None:
    changes = {"gemma3_text": {"windows": "native"}, "mistral": {"max_length": WINDOW}}.get(family, {})
    write(encoder(family, **changes), tmp_path / "enc", tmp_path / "out").close()
    verdict = judged(tmp_path / "out", vllm)
    assert verdict.right, verdict.sentence()
    assert max(case.causal.cosine for case in verdict.cases if "alone" not in case.name) < 0.98
    if family == "gemma3_text":
        assert any("beyond the window" in case.name for case in verdict.cases)


def test_without_the_key_it_is_causal_and_verify_says_so(encoder: Any, vllm: VllmProcess, tmp_path: Path) -> None:
    write(encoder("llama"), tmp_path / "enc", tmp_path / "out").close()
    shutil.copytree(tmp_path / "out", tmp_path / "plain")
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    config.pop("is_causal")
    (tmp_path / "plain" / "config.json").write_text(json.dumps(config))
    verdict = verify(VllmEngine(tmp_path / "plain", process=vllm), tmp_path / "out", device="cpu")
    assert verdict.matches == "causal"
    with pytest.raises(VerificationError, match=r"matches the causal reference .* but the folder's encoder is bidir"):
        verdict.require()


def test_without_the_plugin_a_family_of_its_own_class_is_causal(
    encoder: Any, vllm: VllmProcess, tmp_path: Path
) -> None:
    """The stock folder says `is_causal: false`; vLLM's own class does not ask. What is exported asks for the plugin."""
    encoder("gemma").save_pretrained(tmp_path / "enc", head=False)
    assert judged(tmp_path / "enc", vllm).matches == "causal"


def test_pooling_and_length_are_read_from_the_folder(encoder: Any, vllm: VllmProcess, tmp_path: Path) -> None:
    write(encoder("qwen3", pooling="last", normalize=False), tmp_path / "enc", tmp_path / "out").close()
    verdict = judged(tmp_path / "out", vllm)
    assert verdict.right, verdict.sentence()
    assert not any("lengths" in note for note in verdict.notes)


def test_beyond_the_windows_of_is_causal_it_is_another_function(
    encoder: Any, vllm: VllmProcess, tmp_path: Path
) -> None:
    """Why `export` refuses it."""
    made = encoder("mistral")
    made.save_pretrained(tmp_path / "enc", head=False)
    assert judged(tmp_path / "enc", vllm).matches == "neither"
    short = ["No refunds."]
    found = VllmEngine(tmp_path / "enc", process=vllm).embed(short)
    np.testing.assert_allclose(found, made.encode(short), rtol=0, atol=1e-5)


def test_the_plugin_refuses_what_was_not_measured(encoder: Any, vllm: VllmProcess, tmp_path: Path) -> None:
    encoder("gemma2").save_pretrained(tmp_path / "enc", head=False)
    config = json.loads((tmp_path / "enc" / "config.json").read_text())
    (tmp_path / "enc" / "config.json").write_text(json.dumps({**config, "architectures": [ARCHITECTURE]}))
    with pytest.raises(
        VerificationError, match=r"does not serve .*gemma2 was not measured to be right in vLLM by this"
    ):
        VllmEngine(tmp_path / "enc", process=vllm)


def test_every_family_has_heads_that_vllm_has_kernels_for() -> None:
    assert SHAPE["head_dim"] == 64
    assert set(OWN) <= set(VLLM.families)
