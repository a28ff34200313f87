"""Parity and contract: checkpoints of the reference and LoRA folders load as naive merging has them, or not at all."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lora_folders import amend, make_adapter
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from bothways import Encoder, convert
from bothways.errors import BothwaysError, ConfigError, DataError

TEXTS = ["How do I open a compressed file?", "short", "The zipfile module reads and writes archives. " * 3]


def naive(base: Path, *adapters: Path, texts: Sequence[str] = TEXTS, causal: bool = False) -> np.ndarray:
    """Mean over all but the first token, of a model into whose weights B @ A was added by hand."""
    model = AutoModel.from_pretrained(base)
    weights = dict(model.named_parameters())
    for folder in adapters:
        said = json.loads((folder / "adapter_config.json").read_text())
        scale = said["lora_alpha"] / (math.sqrt(said["r"]) if said.get("use_rslora") else said["r"])
        tensors = {
            name.split("layers.")[-1]: tensor
            for name, tensor in load_file(folder / "adapter_model.safetensors").items()
        }
        for name, a in tensors.items():
            if name.endswith("lora_A.weight"):
                b = tensors[name.replace("lora_A", "lora_B")]
                with torch.no_grad():
                    weights["layers." + name.replace("lora_A.weight", "weight")] += scale * (b @ a)
    model.config.is_causal = causal
    tokenizer = AutoTokenizer.from_pretrained(base)
    found: list[Tensor] = []
    for text in texts:
        with torch.no_grad():
            found.append(model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, 1:].mean(0))
    return torch.stack(found).numpy()


def test_an_mntp_folder_alone(tiny_llama_folder: Path, mntp: Path) -> None:
    encoder = Encoder.from_pretrained(mntp)
    np.testing.assert_allclose(encoder.encode(TEXTS), naive(tiny_llama_folder, mntp), rtol=0, atol=1e-5)
    assert np.abs(encoder.encode(TEXTS) - naive(tiny_llama_folder)).max() > 0.1
    assert encoder.record.certificate is not None
    assert encoder.record.certificate.direction == "bidirectional"


def test_a_second_adapter_on_it_and_the_record_of_both(tiny_llama_folder: Path, mntp: Path, supervised: Path) -> None:
    encoder = Encoder.from_pretrained(mntp, adapter=supervised)
    np.testing.assert_allclose(encoder.encode(TEXTS), naive(tiny_llama_folder, mntp, supervised), rtol=0, atol=1e-5)
    assert encoder.record.base == str(tiny_llama_folder)
    stages = encoder.record.stages
    assert [stage["stage"] for stage in stages] == ["convert", "adapter", "adapter"]
    assert [stage.get("name") for stage in stages[1:]] == [str(mntp), str(supervised)]
    assert len({stage["fingerprint"] for stage in stages[1:]}) == 2
    assert stages[0]["llm2vec"]["doc_max_length"] == 400


@pytest.mark.parametrize("count", [1, 2, 3])
def test_adapters_stacked_by_hand_on_a_decoder(
    tiny_llama_folder: Path, mntp: Path, supervised: Path, tmp_path: Path, count: int
) -> None:
    third = make_adapter(
        tiny_llama_folder, tmp_path / "third", seed=3, use_rslora=True, r=3, lora_alpha=2, target_modules=["q_proj"]
    )
    stack = [mntp, supervised, third][:count]
    encoder = Encoder.from_pretrained(tiny_llama_folder, adapter=stack)
    np.testing.assert_allclose(encoder.encode(TEXTS), naive(tiny_llama_folder, *stack), rtol=0, atol=1e-5)


def test_rank_stabilised_scaling_is_honoured(tiny_llama_folder: Path, tmp_path: Path) -> None:
    folder = make_adapter(tiny_llama_folder, tmp_path / "a", seed=3, use_rslora=True, r=3, lora_alpha=2)
    found = Encoder.from_pretrained(folder).encode(TEXTS)
    np.testing.assert_allclose(found, naive(tiny_llama_folder, folder), rtol=0, atol=1e-5)
    amend(folder / "adapter_config.json", use_rslora=False)
    assert np.abs(found - naive(tiny_llama_folder, folder)).max() > 0.1


@pytest.mark.parametrize(
    "targets", [["q_proj", "down_proj"], ["model.layers.1.self_attn.q_proj"], r"model\.layers\.\d\.mlp\..*_proj"]
)
def test_adapters_of_the_model_with_its_head_serve_its_trunk(
    tiny_llama_folder: Path, tmp_path: Path, targets: Any
) -> None:
    lora = {"task_type": "CAUSAL_LM", "target_modules": targets}
    folder = make_adapter(tiny_llama_folder, tmp_path / "a", seed=3, head=True, **lora)
    assert all(
        name.startswith("base_model.model.model.layers.") for name in load_file(folder / "adapter_model.safetensors")
    )
    found = Encoder.from_pretrained(folder).encode(TEXTS)
    np.testing.assert_allclose(found, naive(tiny_llama_folder, folder), rtol=0, atol=1e-5)
    assert np.abs(found - naive(tiny_llama_folder)).max() > 1e-2


def test_a_pickled_adapter(mntp: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(mntp, tmp_path / "old-mntp"))
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    np.testing.assert_array_equal(
        Encoder.from_pretrained(folder).encode(TEXTS), Encoder.from_pretrained(mntp).encode(TEXTS)
    )


def test_what_is_saved_is_complete_and_can_be_trained_further(mntp: Path, supervised: Path, tmp_path: Path) -> None:
    from bothways import MNTP
    from bothways import mntp as train

    encoder = Encoder.from_pretrained(mntp, adapter=supervised)
    encoder.save_pretrained(tmp_path / "mine")
    again = Encoder.from_pretrained(tmp_path / "mine")
    np.testing.assert_allclose(again.encode(TEXTS), encoder.encode(TEXTS), rtol=0, atol=1e-6)
    trained = train(again, TEXTS * 4, MNTP(steps=1, batch_size=2, block_size=32, precision="fp32", held_out_items=0))
    assert [stage["stage"] for stage in trained.record.stages] == ["convert", "adapter", "adapter", "mntp"]


def test_an_adapter_on_a_bothways_folder(tiny_llama_folder: Path, supervised: Path, tmp_path: Path) -> None:
    convert(tiny_llama_folder, normalize=False, pool_over="text").save_pretrained(tmp_path / "mine")
    encoder = Encoder.from_pretrained(tmp_path / "mine", adapter=supervised)
    np.testing.assert_allclose(encoder.encode(TEXTS), naive(tiny_llama_folder, supervised), rtol=0, atol=1e-5)
    assert [stage["stage"] for stage in encoder.record.stages] == ["convert", "adapter"]


def test_base_takes_the_place_of_the_one_that_is_named(tiny_llama_folder: Path, mntp: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(mntp, tmp_path / "moved-mntp"))
    amend(folder / "adapter_config.json", base_model_name_or_path="/nowhere/at/all")
    with pytest.raises(
        DataError, match=r"was trained on /nowhere/at/all, which is not here: [\s\S]*pass its folder as base="
    ):
        Encoder.from_pretrained(folder)
    found = Encoder.from_pretrained(folder, base=tiny_llama_folder).encode(TEXTS)
    np.testing.assert_array_equal(found, Encoder.from_pretrained(mntp).encode(TEXTS))
    amend(folder / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(DataError, match=r"names no base\. Pass the model it was trained on as base="):
        Encoder.from_pretrained(folder)


def test_a_stack_that_would_skip_mntp_is_refused(tiny_llama_folder: Path, supervised: Path, tmp_path: Path) -> None:
    skips = r'was trained on top of an MNTP stage[\s\S]*Encoder\.from_pretrained\("\.\.\.-mntp", adapter='
    with pytest.raises(ConfigError, match=skips + r'"[^"]*tiny-mntp-supervised"'):
        Encoder.from_pretrained(supervised)
    with pytest.raises(ConfigError, match=skips):
        Encoder.from_pretrained(tiny_llama_folder, adapter=supervised)
    other = Path(shutil.copytree(supervised, tmp_path / "another-name"))
    with pytest.raises(ConfigError, match=r"it has a llm2vec_config\.json"):
        Encoder.from_pretrained(other)
    found = Encoder.from_pretrained(other, without_mntp=True).encode(TEXTS)
    np.testing.assert_allclose(found, naive(tiny_llama_folder, supervised), rtol=0, atol=1e-5)


def without(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if part not in name}


def test_an_adapter_that_does_not_fit_is_refused_by_the_tensor(
    tiny_llama_folder: Path, tiny_untied_folder: Path, mntp: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        DataError,
        match=r"layers\.0\.mlp\.down_proj\.lora_B\.weight has shape \(56, 4\), but LlamaModel \(2 layers, 48 wide\)",
    ):
        Encoder.from_pretrained(mntp, base=tiny_untied_folder)
    for number, (change, said) in enumerate(
        [
            (lambda t: without(t, "layers.2."), r"14 of 42 tensors that adapter_config\.json speaks of are not in"),
            (
                lambda t: {**t, "base_model.model.layers.9.mlp.up_proj.lora_A.weight": torch.zeros(4, 56)},
                r"1 of 43 tensors have no place in LlamaModel",
            ),
            (lambda t: {n.replace("layers.", "blocks."): v for n, v in t.items()}, r"42 of 42 tensors have no place"),
        ]
    ):
        folder = Path(shutil.copytree(mntp, tmp_path / f"{number}-mntp"))
        save_file(change(load_file(mntp / "adapter_model.safetensors")), folder / "adapter_model.safetensors")
        with pytest.raises(DataError, match=said):
            Encoder.from_pretrained(folder)


def test_other_mistakes_name_the_way_out(tiny_llama_folder: Path, mntp: Path, tmp_path: Path) -> None:
    def refused(said: str, *arguments: Any, **options: Any) -> None:
        with pytest.raises(BothwaysError, match=said):
            Encoder.from_pretrained(*arguments, **options)

    refused(
        r"holds no adapter: adapter_config\.json is not there\. It is a whole model", mntp, adapter=tiny_llama_folder
    )
    refused(r"is no adapter\. Leave base out", tiny_llama_folder, base=tiny_llama_folder)
    refused(r"are the same adapter, which would be merged twice", mntp, adapter=mntp)
    refused(r"is neither a bothways nor a sentence-transformers folder", tiny_llama_folder)
    bare = Path(shutil.copytree(mntp, tmp_path / "bare-mntp"))
    (bare / "adapter_model.safetensors").unlink()
    refused(r"but neither adapter_model\.safetensors nor adapter_model\.bin", bare)
    amend(bare / "adapter_config.json", peft_type="IA3")
    refused(r"peft_type 'IA3'; only LORA can be merged here", bare)
    ring = Path(shutil.copytree(mntp, tmp_path / "ring-mntp"))
    amend(ring / "adapter_config.json", base_model_name_or_path=str(ring))
    refused(r"names .* as its base, which is built on it", ring)
    own = tmp_path / "mine"
    Encoder.from_pretrained(mntp).save_pretrained(own)
    shutil.copytree(mntp, own / "adapter")
    refused(r"is the adapter of the last stage of .*, whose weights have it already", mntp, adapter=own / "adapter")
    refused(r"is the adapter of the last stage of", own / "adapter")
