"""Which other engine serves which family both ways, and the key that makes it do so. Facts that were measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Key = Literal["is_causal", "use_bidirectional_attention", "attention.causal"]
"""`"is_causal": false` or `"use_bidirectional_attention": true` in config.json; `<arch>.attention.causal` = false in a
GGUF."""
How = Literal["run", "read"]


@dataclass(frozen=True)
class Engine:
    """What one version of an engine was found to do."""

    name: str
    version: str
    how: How
    """Whether it was run beside both references, or only its source was read."""
    families: Mapping[str, Key]
    """`model_type` of config.json -> the key that this engine reads for it. What is not here is not served right."""
    poolings: frozenset[str]
    """Those of `pooling.POOLINGS` that it has; all of them over all tokens of the input."""
    plugin: frozenset[str] = frozenset()
    """Families that are right only where bothways is installed beside the engine."""
    date: str = ""
    """When it was run or read; empty: before dates were kept here."""

    def serves(self, family: str, *, native: bool, pooling: str, pool_over: str) -> Key | None:
        """The key by which the engine serves an encoder right, or None if it does not.

        `native` says that the encoder was converted by its family's own key (Gemma 3), beside which there is no
        `is_causal`; without it an engine that reads another key is wrong.
        """
        key = self.families.get(family)
        if key is None or pooling not in self.poolings or pool_over != "all":
            return None
        return None if family in NATIVE_FAMILIES and key != "is_causal" and not native else key


NATIVE_FAMILIES = frozenset({"gemma3_text"})
"""Families whose own key is another function than `is_causal`: it halves their windows."""
BOTH_KEYS = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3", "olmo2", "granite", "smollm3"})
"""Families whose config may carry `use_bidirectional_attention` beside `is_causal` without any change in transformers;
serving engines read it. On Gemma 3 the same key halves the window, so it is not written there."""

VLLM = Engine(
    name="vLLM",
    version="0.32.0",
    how="run",
    families={
        **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "phi3"), "is_causal"),
        "gemma3_text": "use_bidirectional_attention",
        **dict.fromkeys(("gemma", "gpt_neox", "olmo2", "opt"), "is_causal"),
    },
    poolings=frozenset({"mean", "last", "cls"}),
    plugin=frozenset({"gemma", "gpt_neox", "olmo2", "opt"}),
    date="2026-11-28",
)
TEI = Engine(
    name="Text Embeddings Inference",
    version="1.9.3",
    how="read",
    families={
        "qwen2": "is_causal",
        **dict.fromkeys(("gemma3_text", "llama", "mistral", "qwen3"), "use_bidirectional_attention"),
    },
    poolings=frozenset({"mean", "last", "cls"}),
)
LLAMA_CPP = Engine(
    name="llama.cpp",
    version="llama-cpp-python 0.3.36",
    how="run",
    families={
        **dict.fromkeys(
            ("gemma", "granite", "llama", "mistral", "olmo2", "qwen2", "qwen3", "smollm3"), "attention.causal"
        ),
        "gemma3_text": "attention.causal",
    },
    poolings=frozenset({"mean", "last", "cls"}),
)
ONNX_RUNTIME = Engine(
    name="ONNX Runtime",
    version="1.32",
    how="run",
    # The exported file has no key left to read: what it computes is what was exported.
    families=dict.fromkeys(
        (
            *("biogpt", "bloom", "falcon", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neo", "gpt_neox", "gptj"),
            *("granite", "llama", "mistral", "mpt", "olmo2", "openai-gpt", "opt", "phi3", "qwen2", "qwen3"),
            *("smollm3", "stablelm"),
        ),
        "is_causal",
    ),
    poolings=frozenset({"mean", "weighted_mean", "last", "cls"}),
)
SGLANG = Engine(
    name="SGLang",
    version="0.5.23",
    how="read",
    families={"gemma3_text": "use_bidirectional_attention"},
    poolings=frozenset({"mean"}),
    date="2026-11-28",
)
ENGINES = {"vllm": VLLM, "tei": TEI, "llama.cpp": LLAMA_CPP, "onnx": ONNX_RUNTIME, "sglang": SGLANG}
