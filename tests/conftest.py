"""Fixtures for every test: offline, seeded, with the shapes in signatures checked by beartype."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from jaxtyping import config, install_import_hook

# Before anything imports bothways: what is imported earlier stays unchecked. The tower lets an int stand for a float.
install_import_hook("bothways", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from pydoc_data import topics

import numpy as np
import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# For `from pages import ...`. Last, so that no folder beside this file hides a package of the same name.
sys.path.append(str(Path(__file__).parent))

# The same examples in every run, and no memory of earlier ones: a failure here is a failure everywhere.
settings.register_profile("house", derandomize=True, database=None, deadline=None)
settings.load_profile("house")

# The models are tiny: a second thread would cost more than it gives, and on a busy machine much more.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tokens are kept in a folder of these tests, not in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BOTHWAYS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def unchecked() -> Iterator[None]:
    """beartype stands aside, so that a wrong type meets what a user without type checks meets: our own errors."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Goldens, data and models kept beside the repository; without them the test is skipped."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("the folder `shared` (goldens, data, models) does not stand beside the repository")
    return folder


@pytest.fixture(scope="session")
def real_texts() -> list[str]:
    """Some hundreds of paragraphs of English prose and code: Python's own help topics, in a fixed order."""
    paragraphs = (
        " ".join(part.split()) for name in sorted(topics.topics) for part in topics.topics[name].split("\n\n")
    )
    return list(dict.fromkeys(text for text in paragraphs if 40 <= len(text) <= 600))


@pytest.fixture(scope="session")
def tiny_llama_folder(tmp_path_factory: pytest.TempPathFactory, real_texts: Sequence[str]) -> Path:
    """A random, tied Llama (3 layers, 56 wide) and its byte-level BPE; `<s>` in front, pad is eos, "_" is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=501,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(real_texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>", model_max_length=256
    )
    config = tiny_config(vocab_size=501, hidden_size=56, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1)
    return save_tiny(config, fast, tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def tiny_untied_folder(tmp_path_factory: pytest.TempPathFactory, real_texts: Sequence[str]) -> Path:
    """A random, untied Llama (2 layers, 48 wide) with a unigram tokenizer: no bos, no pad, no "_", spare rows."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace("_", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=421, special_tokens=["<unk>", "<|end|>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(real_texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", unk_token="<unk>", model_max_length=256
    )
    config = tiny_config(vocab_size=433, hidden_size=48, num_hidden_layers=2, tie_word_embeddings=False, eos_token_id=1)
    return save_tiny(config, fast, tmp_path_factory.mktemp("tiny-untied"))


def tiny_config(**changes: object) -> LlamaConfig:
    shape = {
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 72,
        "max_position_embeddings": 256,
        # Wide enough that attention matters: at the usual 0.02 a random model hardly mixes tokens at all.
        "initializer_range": 0.12,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    return LlamaConfig(**{**shape, **changes})


def save_tiny(config: LlamaConfig, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
