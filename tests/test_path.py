"""Contract: the whole path from folder to folder, with a tied and an untied head, and what the record says of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from bothways import MNTP, Encoder, SimCSE, Supervised, convert, mntp, simcse, supervised
from bothways.data import Example
from bothways.errors import TrainingError

QUICK = {"steps": 2, "batch_size": 4, "held_out_items": 3, "learning_rate": 1e-3, "precision": "fp32"}


def pairs(texts: Sequence[str]) -> list[Example]:
    return [Example(text.split(".")[0], text, query_instruction="Find the text") for text in texts]


@pytest.mark.parametrize("base", ["tiny_llama_folder", "tiny_untied_folder"])
def test_convert_save_load_mntp_save_load_supervised(
    base: str, request: pytest.FixtureRequest, real_texts: list[str], tmp_path: Path
) -> None:
    texts = real_texts[:40]
    convert(request.getfixturevalue(base)).save_pretrained(tmp_path / "0")
    before = Encoder.from_pretrained(tmp_path / "0")
    head = before.head.weight.detach().clone()
    mntp(before, texts, MNTP(**QUICK, block_size=64, lora_r=4), show_progress=False).save_pretrained(tmp_path / "1")
    after = Encoder.from_pretrained(tmp_path / "1")
    # LoRA leaves embedding and head alone.
    np.testing.assert_array_equal(after.head.weight.detach().numpy(), head.numpy())
    assert np.abs(after.encode(texts[:3]) - Encoder.from_pretrained(tmp_path / "0").encode(texts[:3])).max() > 1e-4
    assert (tmp_path / "1" / "adapter" / "adapter_model.safetensors").exists()

    trained = supervised(after, pairs(texts), Supervised(**QUICK, tune="full"), show_progress=False)
    trained.save_pretrained(tmp_path / "2", head=False)
    last = Encoder.from_pretrained(tmp_path / "2")
    np.testing.assert_allclose(last.encode(texts[:3]), trained.encode(texts[:3]), rtol=0, atol=1e-6)
    assert [stage["stage"] for stage in last.record.stages] == ["convert", "mntp", "supervised"]
    assert last.record.certificate.direction == "bidirectional"
    assert not (tmp_path / "2" / "adapter").exists()
    for stage in last.record.stages[1:]:
        assert stage["settings"]["steps"] == 2
        assert len(stage["data"]["fingerprint"]) == 64
        assert set(stage["held_out"]) == {"0", "2"}
        assert {"torch", "transformers", "python"} <= set(stage["versions"])
    if base == "tiny_untied_folder":
        assert last.head is None
        with pytest.raises(TrainingError, match=r"no language-model head .*--base"):
            mntp(last, texts, MNTP(**QUICK), show_progress=False)


def test_simcse_runs_on_what_mntp_left(tiny_llama_folder: Path, real_texts: list[str], tmp_path: Path) -> None:
    encoder = convert(tiny_llama_folder)
    mntp(encoder, real_texts[:30], MNTP(**QUICK, block_size=64, tune="full"), show_progress=False)
    simcse(encoder, real_texts[:30], SimCSE(**QUICK), show_progress=False)
    encoder.save_pretrained(tmp_path)
    record = json.loads((tmp_path / "bothways.json").read_text())
    assert [stage["stage"] for stage in record["stages"]] == ["convert", "mntp", "simcse"]
    assert all(np.isfinite(stage["loss"]) for stage in record["stages"][1:])
