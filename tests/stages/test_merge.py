"""Merge: the weights are those of the formula, what cannot be merged is refused by name, the result is proved again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, Lfm2Config, Lfm2ForCausalLM

from bothways import MNTP, Encoder, Merge, SimCSE, convert, merge, mntp, simcse
from bothways.errors import ConfigError, DataError
from bothways.stages.merge import refuse_checkpoints
from bothways.training.blending import arc
from bothways.training.mask_row import mean_row, recorded_row

SHARED: dict[str, Any] = {"steps": 4, "batch_size": 5, "precision": "fp32", "held_out_items": 0, "learning_rate": 3e-3}
WORDS = ["a text", "another one, which is longer", "and the third"]


@pytest.fixture(scope="module")
def folders(
    tmp_path_factory: pytest.TempPathFactory, tiny_llama_folder: Path, real_texts: list[str]
) -> Mapping[str, Path]:
    """The conversion of a tied decoder, and two short trainings of it that differ in all they can."""
    out = tmp_path_factory.mktemp("merge")
    convert(tiny_llama_folder, dtype="float32", device="cpu").save_pretrained(out / "base")
    one, other = (Encoder.from_pretrained(out / "base") for _ in range(2))
    mntp(one, real_texts[:40], MNTP(block_size=24, **SHARED), show_progress=False).save_pretrained(out / "one")
    simcse(other, real_texts[40:80], SimCSE(tune="full", seed=3, **SHARED), show_progress=False)
    other.save_pretrained(out / "other")
    return {name: out / name for name in ("base", "one", "other")}


def opened(folders: Mapping[str, Path], *names: str) -> dict[str, Encoder]:
    return {name: Encoder.from_pretrained(folders[name], device="cpu") for name in names}


def weights_of(encoder: Encoder) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in encoder.named_parameters()}


def test_two_trainings_become_one_that_is_proved_and_recorded(folders: Mapping[str, Path], tmp_path: Path) -> None:
    one, other = (weights_of(encoder) for encoder in opened(folders, "one", "other").values())
    assert any(not torch.equal(one[name], other[name]) for name in one)
    given = opened(folders, "one", "other")
    merged = merge(given, Merge(weights=(3, 1)))
    assert merged is given["one"]
    merged.save_pretrained(tmp_path / "merged")
    again = Encoder.from_pretrained(tmp_path / "merged", device="cpu")
    for name, weight in again.named_parameters():
        torch.testing.assert_close(weight, 0.75 * one[name] + 0.25 * other[name], rtol=0, atol=1e-6)
    assert again.head is not None
    assert again.head.tied
    assert again.head.weight is again.model.get_input_embeddings().weight
    assert again.record.certificate is not None
    assert again.record.certificate.direction == "bidirectional"
    assert again.record.certificate.converted
    stage = again.record.stages[-1]
    assert [entry["stage"] for entry in again.record.stages] == ["convert", "mntp", "merge"]
    assert stage["settings"] == {"method": "linear", "weights": [3, 1], "t": None, "head": True}
    assert [(entry["name"], entry["weight"]) for entry in stage["encoders"]] == [("one", 0.75), ("other", 0.25)]
    assert stage["base"] is None
    assert stage["encoders"][1]["made"].endswith("+ convert + simcse")
    # All that the first one's own history does not have.
    assert [entry["stage"] for entry in stage["encoders"][1]["stages"]] == ["simcse"]
    assert stage["encoders"][0]["fingerprint"] != stage["encoders"][1]["fingerprint"]
    assert not (tmp_path / "merged" / "adapter").exists()
    assert (folders["one"] / "adapter").exists()
    vectors = [Encoder.from_pretrained(folder).encode(WORDS) for folder in (folders["one"], tmp_path / "merged")]
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3


def test_sentence_transformers_opens_what_was_merged(folders: Mapping[str, Path]) -> None:
    merged = merge(list(opened(folders, "one", "other").values()), Merge(t=0.4))
    model = merged.to_sentence_transformer()
    np.testing.assert_allclose(model.encode(WORDS), merged.encode(WORDS), atol=1e-5)


def test_task_vectors_are_added_to_the_base(folders: Mapping[str, Path]) -> None:
    every = opened(folders, "base", "one", "other")
    base, one, other = (weights_of(encoder) for encoder in every.values())
    anchor = every.pop("base")
    merged = merge(every, Merge(weights=(1, 0.5)), base=anchor)
    for name, weight in merged.named_parameters():
        expected = base[name] + (one[name] - base[name]) + 0.5 * (other[name] - base[name])
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-6)
    assert all(torch.equal(weight, base[name]) for name, weight in anchor.named_parameters())
    stage = merged.record.stages[-1]
    assert (stage["base"]["name"], stage["base"]["stages"]) == ("the base", [])


def test_slerp_goes_along_the_arc_of_the_differences(folders: Mapping[str, Path]) -> None:
    every = opened(folders, "base", "one", "other")
    base, one, other = (weights_of(encoder) for encoder in every.values())
    merged = weights_of(merge(every, Merge(method="slerp", weights=(0, 1, 1)), base=every["base"]))
    for name, weight in merged.items():
        expected = base[name] + arc(one[name] - base[name], other[name] - base[name], 0.5)
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-6)
    name = "model.layers.1.mlp.up_proj.weight"
    # Where they point in different directions the mean is shorter than what they learned; the arc is not.
    straight = (0.5 * (one[name] + other[name]) - base[name]).norm()
    assert (merged[name] - base[name]).norm() > 1.2 * straight


def test_an_encoder_merged_with_itself_is_itself(folders: Mapping[str, Path]) -> None:
    for settings in (Merge(), Merge(method="slerp", t=0.3)):
        one = opened(folders, "one")["one"]
        before = weights_of(one)
        merge([one, one], settings)
        for name, weight in one.named_parameters():
            torch.testing.assert_close(weight, before[name], rtol=1e-6, atol=1e-7)


def test_the_first_ones_dtype_is_kept_and_half_precision_is_added_up_in_float32(folders: Mapping[str, Path]) -> None:
    one = Encoder.from_pretrained(folders["one"], device="cpu", dtype="bfloat16")
    halves, other = weights_of(one), opened(folders, "other")["other"]
    merge([one, other], Merge(t=0.25))
    for name, weight in one.named_parameters():
        expected = 0.75 * halves[name].float() + 0.25 * other.get_parameter(name)
        assert torch.equal(weight, expected.to(torch.bfloat16))


def test_rows_of_an_untied_head_are_merged_or_left_out(tiny_untied_folder: Path) -> None:
    one, other = (convert(tiny_untied_folder, dtype="float32", device="cpu") for _ in range(2))
    assert other.head is not None
    with torch.no_grad():
        other.head.weight += 1
    before = weights_of(one)["head.weight"]
    merged = merge([one, other], Merge(t=0.25))
    assert merged.head is not None
    torch.testing.assert_close(merged.head.weight.detach(), before + 0.25)
    other.head = None
    message = 'differ in the language-model head: "untied, scale 1, softcap None" and none. Merge(head=False), or --no-'
    with pytest.raises(ConfigError, match=re.escape(message)):
        merge([one, other])
    with pytest.raises(ConfigError, match=r"the shape of head\.weight: \[433, 48\] and none\. Merge\(head=False\)"):
        merge([one, one], base=other)
    assert merge([one, other], Merge(head=False)).head is None


def test_a_mask_token_of_their_own_is_merged_from_where_it_starts(
    folders: Mapping[str, Path], real_texts: list[str]
) -> None:
    """The vocabulary fills the embedding, so that the stages appended a row that the base does not have."""
    both = []
    for seed in (1, 2):
        encoder = opened(folders, "base")["base"]
        settings = MNTP(block_size=24, mask_token="new", seed=seed, **SHARED)
        both.append(mntp(encoder, real_texts[:40], settings, show_progress=False))
    base = opened(folders, "base")["base"]
    row = recorded_row(both[0].record)
    assert row == base.model.get_input_embeddings().weight.shape[0] == 501
    rows = [encoder.model.get_input_embeddings().weight[row].detach().clone() for encoder in both]
    start = mean_row(base)
    merged = merge(both, Merge(weights=(1, 1)), base=base)
    found = merged.model.get_input_embeddings().weight
    torch.testing.assert_close(found[row].detach(), rows[0] + rows[1] - start, rtol=0, atol=1e-6)
    assert base.model.get_input_embeddings().weight.shape[0] == row
    assert recorded_row(merged.record) == row
    with pytest.raises(ConfigError, match=r'the row of mask_token="new": 501 and none\. Merge encoders from'):
        merge([merged, base])


def test_gates_of_what_runs_both_ways_are_merged_and_measured_again(tiny_llama_folder: Path, tmp_path: Path) -> None:
    config = Lfm2Config(
        vocab_size=501,
        hidden_size=48,
        intermediate_size=56,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        layer_types=["conv", "full_attention"],
        block_dim=48,
        conv_dim=48,
        max_position_embeddings=64,
        initializer_range=0.12,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=1,
    )
    Lfm2ForCausalLM(config).save_pretrained(tmp_path / "lfm2")
    AutoTokenizer.from_pretrained(tiny_llama_folder).save_pretrained(tmp_path / "lfm2")
    one, other = (convert(tmp_path / "lfm2", dtype="float32", device="cpu") for _ in range(2))
    gates = [name for name, _ in other.named_parameters() if "conv" in name and "gate" in name]
    assert len(gates) > 0
    with torch.no_grad():
        for name in gates:
            other.get_parameter(name).add_(1.0)
    before = weights_of(one)
    merged = merge([one, other])
    for name in gates:
        torch.testing.assert_close(merged.get_parameter(name).detach(), before[name] + 0.5)
    merged.save_pretrained(tmp_path / "merged")
    again = Encoder.from_pretrained(tmp_path / "merged", device="cpu")
    np.testing.assert_allclose(again.encode(WORDS), merged.encode(WORDS), atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooling": "last"}, 'one and other differ in pooling: "mean" and "last". Merge encoders that were converted'),
        ({"direction": "causal"}, 'one and other differ in direction: "bidirectional" and "causal".'),
        ({"pool_over": "text"}, 'one and other differ in pool_over: "all" and "text".'),
        ({"append_eos": True}, "one and other differ in append_eos: false and true."),
        (
            {"instruction_template": "instruct"},
            'one and other differ in instruction_template: "{instruction} {text}" and "Instruct: ',
        ),
    ],
)
def test_what_was_converted_otherwise_is_refused(
    changes: dict[str, Any], message: str, folders: Mapping[str, Path], tiny_llama_folder: Path
) -> None:
    one = opened(folders, "one")["one"]
    before = weights_of(one)
    other = convert(tiny_llama_folder, dtype="float32", device="cpu", **changes)
    with pytest.raises(ConfigError, match=re.escape(f"merge: {message}")):
        merge({"one": one, "other": other})
    assert all(torch.equal(weight, before[name]) for name, weight in one.named_parameters())
    assert one.record.stages[-1]["stage"] == "mntp"


def test_another_architecture_shape_config_or_tokenizer_is_refused(
    folders: Mapping[str, Path], tiny_untied_folder: Path
) -> None:
    one, other = opened(folders, "one", "other").values()
    foreign = convert(tiny_untied_folder, dtype="float32", device="cpu")
    with pytest.raises(ConfigError, match=r'encoders\[0\] and encoders\[1\] differ in "hidden_size" of the config: 56'):
        merge([one, foreign])
    with pytest.raises(ConfigError, match=r"encoders\[0\] and the base differ in tokenizer: \"501 tokens, SHA-256 \w+"):
        merge([one, other], base=foreign)
    other.model.config.rope_parameters["rope_theta"] = 5.0
    with pytest.raises(ConfigError, match=r'differ in "rope_parameters.rope_theta" of the config: 10000\.0 and 5\.0'):
        merge([one, other])
    other.model.config.rope_parameters["rope_theta"] = 10000.0
    other.model.norm = torch.nn.LayerNorm(56, bias=True)
    with pytest.raises(
        ConfigError, match=r"differ in the shape of model\.norm\.bias: none and \[56\]\. Merge encoders"
    ):
        merge([one, other])
    other.model.__class__ = type("Alpaca", (type(other.model),), {})
    with pytest.raises(ConfigError, match='differ in architecture: "LlamaModel" and "Alpaca"'):
        merge([one, other])


@pytest.mark.parametrize(
    ("settings", "encoders", "anchored", "message"),
    [
        ({}, 1, False, "merge: 1 encoder, expected two or more."),
        (
            {"weights": (1.0, 2.0)},
            3,
            False,
            "Merge(weights=(1, 2)): 3 encoders need as many weights. Give one for each.",
        ),
        ({"t": 0.5}, 3, False, "Merge(t=0.5): t is for two encoders, found 3. Give weights."),
        ({"weights": (1.0, -1.0)}, 2, False, "Merge(weights=(1, -1)): they sum to 0, and are to be divided by that."),
        ({"weights": (0.0, 0.0), "method": "slerp"}, 2, True, "Merge(weights=(0, 0)): they sum to 0"),
    ],
)
def test_settings_for_another_number_of_encoders_are_refused(
    settings: dict[str, Any], encoders: int, anchored: bool, message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Merge(**settings).shares(encoders, anchored=anchored)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"t": 1.5}, "Merge(t=1.5): expected 0 <= t <= 1."),
        ({"t": 0.5, "weights": (0.5, 0.5)}, "Merge(t=0.5) says the same as weights=(0.5, 0.5). Give one of them."),
        ({"weights": (1.0, float("nan"))}, "Merge(weights=(1, nan)): expected finite numbers."),
        ({"weights": (1.0, -1.0), "method": "slerp"}, 'Merge(weights=(1, -1)): method="slerp" goes between encoders.'),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Merge(**settings)


def test_shares() -> None:
    assert Merge().shares(4, anchored=True) == (0.25,) * 4
    assert Merge(t=0.25).shares(2, anchored=True) == (0.75, 0.25)
    assert Merge(weights=(3, 1)).shares(2, anchored=False) == (0.75, 0.25)
    assert Merge(weights=(3, -1)).shares(2, anchored=True) == (3, -1)
    assert Merge(weights=(3, 1), method="slerp").shares(2, anchored=True) == (0.75, 0.25)


def test_checkpoints_of_a_run_are_no_encoder(
    folders: Mapping[str, Path], real_texts: list[str], tmp_path: Path
) -> None:
    checkpoints = tmp_path / "enc" / "1.checkpoints"
    mntp(
        opened(folders, "base")["base"],
        real_texts[:40],
        MNTP(block_size=24, save_every=2, **SHARED),
        checkpoint_dir=checkpoints,
        show_progress=False,
    )
    for path in (checkpoints, *checkpoints.glob("step-*")):
        with pytest.raises(
            DataError, match=r"is of the checkpoints of a run: .* Finish the run with --resume and merge 1;"
        ):
            refuse_checkpoints(path)
    (tmp_path / "step-100").mkdir()
    for name in (folders["one"], tmp_path / "step-100"):
        refuse_checkpoints(name)
    refuse_checkpoints("hub/name")
