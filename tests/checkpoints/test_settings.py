"""Contract: what llm2vec_config.json says becomes settings, or an error; what stands around a text is part of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lora_folders import amend
from transformers import AutoTokenizer, GemmaConfig, LlamaConfig, Qwen2Config, Qwen3Config

from bothways import Encoder, convert
from bothways.errors import ConfigError, DataError
from bothways.provenance import EncoderSettings
from bothways.references import CHATS, LLM2VecConfig, as_it_reads, is_made_by_it, text_template


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"pooling_mode": "latent_pooling"},
            r'pooling_mode "latent_pooling"; expected one of mean, weighted_mean, eos',
        ),
        ({"max_lenght": 3}, r'unknown key "max_lenght"\. Did you mean "max_length"\?'),
    ],
)
def test_what_it_cannot_mean(tmp_path: Path, changes: dict, said: str) -> None:
    amend(tmp_path / "llm2vec_config.json", **changes)
    with pytest.raises(DataError, match=said):
        LLM2VecConfig.read(tmp_path)


def test_a_damaged_file_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "llm2vec_config.json").write_text('{\n"max_length": }')
    with pytest.raises(DataError, match=r"llm2vec_config\.json line 2"):
        LLM2VecConfig.read(tmp_path)


def test_the_beginning_cannot_be_pooled_where_there_is_none(tiny_untied_folder: Path, tmp_path: Path) -> None:
    from lora_folders import make_adapter

    folder = make_adapter(tiny_untied_folder, tmp_path / "first-mntp", seed=1)
    amend(folder / "llm2vec_config.json", pooling_mode="bos_token")
    with pytest.raises(DataError, match=r"puts no beginning-of-sequence token before a text"):
        Encoder.from_pretrained(folder)


def test_the_whole_model_that_the_reference_saved_brings_its_settings(tiny_llama_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModel

    AutoModel.from_pretrained(tiny_llama_folder).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_llama_folder).save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"is neither a bothways nor"):
        Encoder.from_pretrained(tmp_path)
    code = {"AutoModel": "modeling_llama_encoder.LlamaEncoderModel"}
    amend(tmp_path / "config.json", architectures=["LlamaEncoderModel"], auto_map=code)
    plain = Encoder.from_pretrained(tmp_path)
    assert not hasattr(plain.model.config, "auto_map")
    amend(
        tmp_path / "llm2vec_config.json",
        pooling_mode="eos_token",
        max_length=77,
        doc_max_length=7,
        skip_instruction=False,
    )
    encoder = Encoder.from_pretrained(tmp_path)
    settings = encoder.settings
    assert (settings.pooling, settings.pool_over, settings.max_length) == ("last", "all", 77)
    assert settings.text_template == "{text} </s>"
    assert encoder.tokenise(["a text  \n"])[0].ids[-1] == encoder.tokenizer.eos_token_id


def test_which_folders_are_the_references_own(tmp_path: Path) -> None:
    for name in ("LlamaBiModel", "MistralEncoderModel", "Qwen2BiForMNTP", "GemmaBiModel"):
        assert is_made_by_it(tmp_path, {"architectures": [name]})
    for name in ("LlamaForCausalLM", "LlamaModel", "MyLlamaBiModel", "ModernBertModel"):
        assert not is_made_by_it(tmp_path, {"architectures": [name]})
    assert not is_made_by_it(tmp_path, {})


@pytest.mark.parametrize(
    ("names", "mode", "config", "template"),
    [
        (["meta-llama/Meta-Llama-3-8B"], "eos_token", LlamaConfig(), "{text}<|end_of_text|>"),
        (["meta-llama/Meta-Llama-3-8B"], "mean", LlamaConfig(), "{text}"),
        (
            ["meta-llama/Meta-Llama-3-8B-Instruct"],
            "eos_token",
            LlamaConfig(),
            CHATS["meta-llama/Meta-Llama-3-8B-Instruct"],
        ),
        (["/a/copy", "meta-llama/Llama-2-7b-chat-hf"], "mean", LlamaConfig(), "[INST] {text} [/INST]"),
        (["google/gemma-2b"], "eos_token", GemmaConfig(), "{text}<eos>"),
        (["Qwen/Qwen2-7B-Instruct"], "eos_token", Qwen2Config(), "<|im_start|>user\n{text}<|im_end|><|endoftext|>"),
        (["Qwen/Qwen3-0.6B"], "eos_token", Qwen3Config(), "{text}"),
    ],
)
def test_what_stands_around_a_text(names: list[str], mode: str, config: object, template: str) -> None:
    assert text_template(names, mode, config) == template


def test_the_part_of_a_long_text_that_the_reference_reads(tiny_llama_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_folder)
    said = LLM2VecConfig(max_length=64, doc_max_length=20)
    text = "one two three " * 40
    read = as_it_reads(tokenizer, text, said)
    assert text.startswith(read)
    assert 10 <= len(tokenizer(read, add_special_tokens=False)["input_ids"]) <= 20
    assert as_it_reads(tokenizer, "x" * 400, said) == ""
    assert as_it_reads(tokenizer, " as it is ", said) == " as it is "


def test_a_text_template_is_a_setting_that_stays_out_of_mntp(tiny_llama_folder: Path) -> None:
    from bothways.training.rows import tokenise

    with pytest.raises(ConfigError, match=r"text_template='\[INST\]' must hold \{text\} exactly once"):
        EncoderSettings(text_template="[INST]")
    encoder = convert(tiny_llama_folder)
    bare = encoder.tokenise(["a text"])[0].ids
    vars(encoder)["settings"] = EncoderSettings(text_template="<{text}>", max_length=64)
    assert len(encoder.tokenise(["a text"])[0].ids) > len(bare)
    assert tokenise(encoder, ["a text"], max_length=None, bare=True)[0].ids == bare
    assert json.dumps(vars(encoder.settings)["text_template"]) == '"<{text}>"'
