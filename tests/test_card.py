"""Contract: the card's front matter is the hub's, it says what was done, and names only engines that serve it right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from pages import blocks

from bothways import convert
from bothways.card import license_of, model_card
from bothways.provenance import EncoderSettings, Record

COMMIT = "0123456789" * 4
DATA = {
    "items": 1234,
    "fingerprint": "f" * 64,
    "sources": [
        {"name": "hub:owner/questions?split=train", "rows": 1200, "weight": 1.0, "skipped": 0},
        {"name": "texts.txt", "rows": 34, "weight": 1.0, "skipped": 0},
    ],
}
STAGES: tuple[dict[str, Any], ...] = (
    {
        "stage": "convert",
        "settings": {"prompts": {"query": "a\n`b`"}},
        "base_fingerprint": COMMIT,
        "base_license": {"license": "other", "license_name": "special", "license_link": "LICENSE"},
    },
    {"stage": "mntp", "settings": {"steps": 9, "mask_rate": 0.2}, "data": DATA, "loss": 2.5},
    {"stage": "supervised", "data": DATA, "scores": {"sts": {"spearman": 0.71234}}},
)
RECORD = Record(base="owner/decoder", stages=STAGES, notes=("Something differs.",))


def card(settings: EncoderSettings | None = None, record: Record = RECORD, **facts: Any) -> str:
    return model_card(settings or EncoderSettings(), record, **{"dim": 48, "family": "llama", **facts})


def test_the_front_matter_is_what_the_hub_reads() -> None:
    data = ModelCard(card()).data
    assert data.base_model == "owner/decoder"
    assert data.library_name == "sentence-transformers"
    assert data.pipeline_tag == "sentence-similarity"
    assert data.tags == ["bothways", "sentence-transformers", "feature-extraction", "llm2vec"]
    assert data.datasets == ["owner/questions"]
    assert (data.license, data.license_name, data.license_link) == ("other", "special", "LICENSE")


def test_a_base_that_is_a_folder_is_no_name_on_the_hub(tmp_path: Path) -> None:
    record = replace(RECORD, base="enc/0", stages=({**STAGES[0], "base_fingerprint": "a" * 64, "base_license": {}},))
    (tmp_path / "README.md").write_text(card(record=record))
    assert set(metadata_load(tmp_path / "README.md") or {}) == {"library_name", "pipeline_tag", "tags"}


def test_it_says_how_it_was_made_and_how_good_it_is() -> None:
    text = card(EncoderSettings(prompts={"query": "Question: "}))
    for line in (
        "### 1. mntp",
        "`steps=9`, `mask_rate=0.2`",
        "Data: `hub:owner/questions?split=train` (1,200 rows), `texts.txt` (34 rows); 1,234 items, "
        "fingerprint `ffffffffffffffff`.",
        "Training loss at the end: 2.5.",
        "| 2 supervised | sts | spearman | 0.7123 |",
        "- prompt `query`: `'Question: '`",
        "> **Note.** Something differs.",
        "@article{behnamghader2024llm2vec,",
        "arXiv 2404.05961",
    ):
        assert line in text, line
    assert "## Scores" not in card(record=replace(RECORD, stages=STAGES[:2]))


@pytest.mark.parametrize(
    ("facts", "settings", "engines"),
    [
        ({"family": "llama"}, {}, {"vLLM", "Text Embeddings Inference", "llama.cpp", "ONNX Runtime"}),
        ({"family": "olmo2"}, {}, {"vLLM", "llama.cpp", "ONNX Runtime"}),
        ({"family": "gpt2"}, {}, {"ONNX Runtime"}),
        ({"family": "mixtral"}, {}, set()),
        ({"family": "gemma3_text"}, {"windows": "keep"}, {"ONNX Runtime"}),
        (
            {"family": "gemma3_text"},
            {"windows": "native"},
            {"vLLM", "Text Embeddings Inference", "llama.cpp", "ONNX Runtime"},
        ),
        ({"family": "llama"}, {"pool_over": "text"}, set()),
        ({"family": "llama"}, {"pooling": "weighted_mean"}, {"ONNX Runtime"}),
        ({"family": "llama"}, {"direction": "causal"}, set()),
        ({"family": "llama", "two_way": True}, {}, set()),
    ],
)
def test_only_engines_that_serve_it_right_are_named(
    facts: dict[str, Any], settings: dict[str, Any], engines: set[str]
) -> None:
    text = card(EncoderSettings(**settings), **facts)
    named = {"vLLM", "Text Embeddings Inference", "llama.cpp", "ONNX Runtime"}
    assert {name for name in named if f"| {name} |" in text} == engines
    assert "bothways verify TARGET --against FOLDER" in text
    plugin = "--to vllm --out vllm-folder`, with bothways installed beside the engine"
    assert (plugin in text) == (facts["family"] == "olmo2")


def test_its_python_runs(tiny_llama_folder: Path, tmp_path: Path) -> None:
    encoder = convert(tiny_llama_folder, dtype="float32", device="cpu", prompts={"query": "Q: "})
    encoder.save_pretrained(tmp_path / "enc")
    found = blocks("python", (tmp_path / "enc" / "README.md").read_text())
    assert len(found) == 2
    for block in found:
        scope: dict[str, Any] = {}
        exec(block.replace("FOLDER", str(tmp_path / "enc")), scope)
        np.testing.assert_allclose(scope["vectors"], encoder.encode_document(["a text", "another"]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("readme", "found"),
    [
        ("---\nlicense: apache-2.0\ntags: [a]\n---\n# A", {"license": "apache-2.0"}),
        ("---\nlicense: [mit, other]\n---\n", {}),
        ("# No front matter", {}),
        (None, {}),
    ],
)
def test_the_licence_of_the_base(readme: str | None, found: dict[str, str], tmp_path: Path) -> None:
    if readme is not None:
        (tmp_path / "README.md").write_text(readme)
    assert license_of(tmp_path) == found
