"""What the reference implementation, llm2vec 0.2.3, means by its checkpoints: settings, templates, whose turn it is.

Source: BehnamGhader et al. 2024 (arXiv 2404.05961), and the package's `LLM2Vec` class.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from bothways import artefact
from bothways.bidirectional.attention import has_native_key
from bothways.errors import DataError, did_you_mean
from bothways.lora import Adapter
from bothways.pooling import Pooling
from bothways.provenance import EncoderSettings

FILE = "llm2vec_config.json"
FAMILIES = ("llama", "mistral", "gemma", "qwen2")
"""The model types that it makes bidirectional."""
CLASSES = re.compile(r"(Llama|Mistral|Gemma|Qwen2)(BiModel|BiForMNTP|EncoderModel)")
"""The names that its classes leave in config.json; the last is what its hub repositories say."""
SECOND = re.compile(r"-mntp-\w")
"""In the name of an adapter that was trained on top of MNTP, as its hub repositories are called."""
POOLINGS: dict[str, Pooling] = {
    "mean": "mean",
    "weighted_mean": "weighted_mean",
    "eos_token": "last",
    "last_token": "last",
    "bos_token": "cls",
}
LLAMA_3 = "meta-llama/Meta-Llama-3-8B"
CHATS = {
    f"{LLAMA_3}-Instruct": "<|start_header_id|>user<|end_header_id|>\n\n{text}<|eot_id|>",
    "mistralai/Mistral-7B-Instruct-v0.2": "[INST] {text} [/INST]",
    "meta-llama/Llama-2-7b-chat-hf": "[INST] {text} [/INST]",
    "google/gemma-2-9b-it": "<bos><start_of_turn>user\n{text}<end_of_turn>",
    "Qwen/Qwen2-1.5B-Instruct": "<|im_start|>user\n{text}<|im_end|>",
    "Qwen/Qwen2-7B-Instruct": "<|im_start|>user\n{text}<|im_end|>",
}
"""What it puts around instruction and text, by the base's name."""
ENDS = {"llama": " </s>", "mistral": " </s>", "gemma": "<eos>", "qwen2": "<|endoftext|>"}
"""What it puts behind a text whose last token is pooled as the end of the sequence."""


@dataclass(frozen=True, kw_only=True)
class LLM2VecConfig:
    """llm2vec_config.json; the defaults are those of the class, which hold where there is no such file."""

    pooling_mode: str = "mean"
    max_length: int = 512
    doc_max_length: int = 400
    skip_instruction: bool = True

    @classmethod
    def read(cls, folder: Path) -> LLM2VecConfig:
        """What a folder says. Raises DataError for what this version of it does not write."""
        path = folder / FILE
        if not path.exists():
            return cls()
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise DataError(f"{path} line {error.lineno}: {error.msg}. Restore the file.") from error
        known = [item.name for item in fields(cls)]
        for name in content:
            if name not in known:
                raise DataError(f'{path}: unknown key "{name}". {did_you_mean(name, known)}')
        found = cls(**content)
        if found.pooling_mode not in POOLINGS:
            raise DataError(f'{path}: pooling_mode "{found.pooling_mode}"; expected one of {", ".join(POOLINGS)}.')
        return found


def is_made_by_it(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether the weights of a folder are one of its encoders, rather than a decoder as it was published."""
    return (folder / FILE).exists() or any(map(CLASSES.fullmatch, config.get("architectures") or ()))


def comes_second(adapter: Adapter) -> str | None:
    """How one sees that an adapter was trained on top of an MNTP stage; None if nothing says so.

    Such an adapter names the original decoder as its base all the same.
    """
    name = adapter.name.rstrip("/").rsplit("/", 1)[-1]
    if name.endswith("-mntp"):
        return None
    if SECOND.search(name):
        return f'it is called "{name}"'
    return f"it has a {FILE}, which its MNTP training does not write" if (adapter.folder / FILE).exists() else None


def text_template(names: Sequence[str], pooling_mode: str, config: PreTrainedConfig) -> str:
    """What stands around every text, by the names that a base is known under; "{text}" alone for most."""
    found = next((name for name in names if name in CHATS), None)
    template = CHATS[found] if found else "{text}"
    if pooling_mode != "eos_token" or found == f"{LLAMA_3}-Instruct":
        return template
    return template + ("<|end_of_text|>" if LLAMA_3 in names else ENDS.get(config.model_type, ""))


def settings_of(
    said: LLM2VecConfig, names: Sequence[str], config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> EncoderSettings:
    """The settings under which an encoder gives the reference's vectors. Raises DataError where it gives none."""
    first = said.pooling_mode == "bos_token"
    if first and tokenizer("a")["input_ids"][:1] != [tokenizer.bos_token_id]:
        raise DataError(
            'pooling_mode "bos_token", but the tokenizer puts no beginning-of-sequence token before a text. '
            f"Correct {FILE}."
        )
    return EncoderSettings(
        pooling=POOLINGS[said.pooling_mode],
        # It looks for that token wherever it is, instructions skipped or not.
        pool_over="text" if said.skip_instruction and not first else "all",
        normalize=False,
        max_length=min(said.max_length, artefact.length_limit(config, said.max_length)),
        text_template=text_template(names, said.pooling_mode, config),
        # Its own masks hide nothing, whatever window the config has.
        windows="full" if config.model_type in FAMILIES else "native" if has_native_key(config) else "keep",
    )


def as_it_reads(tokenizer: PreTrainedTokenizerBase, text: str, said: LLM2VecConfig | None = None) -> str:
    """The part of a long text that the reference reads: words go from its end until `doc_max_length` tokens are left.

    Of one that has no spaces nothing is left. For comparing with its vectors; nothing here calls it.
    """
    said = said or LLM2VecConfig()

    def count(text: str) -> int:
        return min(len(tokenizer(text, add_special_tokens=False)["input_ids"]), said.max_length)

    while (tokens := count(text)) > said.doc_max_length:
        words = text.split()
        text = " ".join(words[: int(len(words) * (said.doc_max_length / tokens))])
    return text
