"""Parity: what a step is said to hold and compute, counted without content, is what the real step takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, LlamaConfig

from bothways.encoder import Encoder
from bothways.provenance import EncoderSettings
from bothways.stages.convert import convert
from bothways.stages.mntp import mntp
from bothways.stages.simcse import simcse
from bothways.training import losses
from bothways.training.footprint import Footprint, UncountableError
from bothways.training.run import Done, Run
from bothways.training.settings import MNTP, SimCSE, Supervised, Training
from bothways.training.skeleton import Making, Skeleton
from bothways.training.tracking import Live

BLOCK = 40
MNTP_3 = MNTP(steps=1, batch_size=6, tokens_per_batch=3 * BLOCK, block_size=BLOCK, precision="fp32", held_out_items=0)
SIMCSE_4 = SimCSE(steps=1, batch_size=4, tokens_per_batch=4 * 12, max_length=12, precision="fp32", held_out_items=0)


def skeleton(folder: Path, kernel: str = "eager", *, dtype: torch.dtype = torch.float32) -> Skeleton:
    return Skeleton(AutoConfig.from_pretrained(folder), EncoderSettings(), Making(dtype, attn_implementation=kernel))


def footprint(made: Skeleton, settings: Training, rows: int, tokens: int, device: str = "cpu") -> Footprint:
    dtype = torch.float32 if settings.precision == "fp32" else torch.bfloat16
    return Footprint(made, settings, dtype, device, rows, tokens)


def measured(monkeypatch: pytest.MonkeyPatch, train: Callable[[], Encoder]) -> tuple[int, int]:
    """Bytes at the peak of the first step of a real stage, beside weights and what trains them; and its FLOPs."""
    found: list[Live] = []
    step = Run.step

    def counted(self: Any, number: int) -> Done:
        held = torch.nn.Module()
        held.encoder = self.task.encoder
        held.masters = torch.nn.ParameterList(self.share.masters.values())
        with Live(held) as live:
            found.append(live)
            optimise = self.optimiser.step

            def outside() -> None:
                # AdamW makes its state in its first step; the plan has that elsewhere.
                live._most = 2**62
                optimise()

            monkeypatch.setattr(self.optimiser, "step", outside)
            return step(self, number)

    monkeypatch.setattr(Run, "step", counted)
    train()
    return found[0].peak.total(), found[0].flops


@pytest.mark.parametrize("tune", ["full", "lora"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_an_mntp_step_holds_and_computes_what_is_planned(
    tune: Any, precision: Any, kernel: str, tiny_llama_folder: Path, real_texts: list[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr("bothways.hardware.EAGER_TOKENS", 0)
    settings = replace(MNTP_3, tune=tune, precision=precision)
    planned = footprint(skeleton(tiny_llama_folder, kernel), settings, 6, BLOCK)
    peak = sum(size for part, size in planned.moving(3, False, False).items() if part != "allocator")
    encoder = convert(tiny_llama_folder, attn_implementation=kernel)
    real, flops = measured(monkeypatch, lambda: mntp(encoder, real_texts[:30], settings, show_progress=False))
    assert peak == pytest.approx(real, rel=0.03)
    assert planned.flops_per_row(3, False, False) * 6 == pytest.approx(flops, rel=0.03)


@pytest.mark.parametrize("grad_cache", [False, True])
def test_a_contrastive_step_keeps_all_passes_or_one(
    grad_cache: bool, tiny_llama_folder: Path, real_texts: list[str], monkeypatch: Any
) -> None:
    settings = replace(SIMCSE_4, grad_cache=grad_cache, dropout=0.3, tune="full")
    planned = footprint(skeleton(tiny_llama_folder), settings, 8, 12)
    peak = sum(size for part, size in planned.moving(4, grad_cache, False).items() if part != "allocator")
    encoder = convert(tiny_llama_folder)
    long = [text for text in real_texts if len(text) > 100][:4]
    real, flops = measured(monkeypatch, lambda: simcse(encoder, long, settings, show_progress=False))
    assert peak == pytest.approx(real, rel=0.05)
    assert planned.flops_per_row(4, grad_cache, False) * 8 == pytest.approx(flops, rel=0.03)


def test_layers_that_are_computed_again_are_not_kept(tiny_llama_folder: Path) -> None:
    planned = footprint(skeleton(tiny_llama_folder), replace(MNTP_3, tune="lora"), 6, BLOCK)
    plain, again = (sum(planned.moving(6, False, way).values()) for way in (False, True))
    assert again < 0.6 * plain
    assert 1.2 < planned.flops_per_row(6, False, True) / planned.flops_per_row(6, False, False) < 1.6


def test_weights_stand_once_and_masters_beside_them_only_in_bfloat16(tiny_llama_folder: Path) -> None:
    fp32 = footprint(skeleton(tiny_llama_folder), replace(MNTP_3, tune="full"), 6, BLOCK)
    bf16 = footprint(skeleton(tiny_llama_folder), replace(MNTP_3, tune="full", precision="bf16"), 6, BLOCK)
    total = fp32.sizes.total
    assert fp32.sizes.head == 0
    assert fp32.sizes.embedding == 501 * 56
    assert fp32.fixed["AdamW"] == 8 * total
    assert fp32.fixed["float32 masters"] == fp32.fixed["weights as loaded"] == 0
    assert fp32.fixed["weights"] == pytest.approx(4 * total, rel=0.01)
    assert bf16.fixed["weights"] == pytest.approx(2 * total, rel=0.01)
    assert bf16.fixed["float32 masters"] == 4 * total


def test_frozen_weights_in_another_format_are_kept_as_they_were_loaded(tiny_llama_folder: Path) -> None:
    planned = footprint(skeleton(tiny_llama_folder), replace(MNTP_3, tune="lora", precision="bf16"), 6, BLOCK)
    assert planned.fixed["weights as loaded"] == pytest.approx(4 * planned.sizes.total, rel=0.01)
    assert 0 < planned.sizes.trained < planned.sizes.total
    assert planned.fixed["AdamW"] == 8 * planned.sizes.trained


def test_eager_attention_grows_with_the_square_of_the_row_and_fused_kernels_do_not(tiny_llama_folder: Path) -> None:
    def activations(kernel: str, tokens: int, device: str) -> int:
        settings = replace(MNTP_3, precision="bf16", lora_dropout=0.0)
        made = skeleton(tiny_llama_folder, kernel, dtype=torch.bfloat16)
        return footprint(made, settings, 3, tokens, device).moving(3, False, False)["activations"]

    for device in ("cpu", "cuda"):
        assert activations("sdpa", 240, device) < 2.05 * activations("sdpa", 120, device)
    assert activations("eager", 240, "cpu") > 2.5 * activations("eager", 120, "cpu")


def test_the_loss_is_cut_as_on_the_device_and_the_rule_is_left_as_it_was() -> None:
    def total(device: str) -> int:
        config = LlamaConfig(
            hidden_size=24, intermediate_size=40, num_hidden_layers=1, num_attention_heads=2, vocab_size=9001
        )
        made = Skeleton(config, EncoderSettings(), Making(torch.float32, attn_implementation="sdpa"))
        settings = replace(MNTP_3, mask_rate=0.9, lora_dropout=0.0)
        moving = footprint(made, settings, 60, BLOCK, device).moving(60, False, False)
        return sum(size for part, size in moving.items() if part != "allocator")

    before = dict(losses.LOGITS_PER_CHUNK)
    # 2106 rows of logits in one piece on an accelerator, in pieces of 128 on CPU.
    assert total("cuda") - total("cpu") == pytest.approx((2106 - 128) * 9001 * 4, rel=0.1)
    assert before == losses.LOGITS_PER_CHUNK


def test_a_mixer_that_looks_back_counts_twice() -> None:
    def flops(direction: Any) -> float:
        config = AutoConfig.for_model(
            "mamba", hidden_size=48, num_hidden_layers=3, vocab_size=301, state_size=8, time_step_rank=4
        )
        made = Skeleton(config, EncoderSettings(direction=direction), Making(torch.float32))
        assert made.notes == ()
        return footprint(made, replace(MNTP_3, tune="full"), 6, 20).flops_per_row(3, False, False)

    assert 1.6 < flops("bidirectional") / flops("causal") < 2.1


def test_code_that_reads_values_is_said_to() -> None:
    config = AutoConfig.for_model(
        "longcat_flash", hidden_size=64, num_hidden_layers=2, num_layers=1, vocab_size=301, ffn_hidden_size=48,
        num_attention_heads=4, kv_lora_rank=16, q_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16,
        n_routed_experts=4, expert_ffn_hidden_size=32, moe_topk=2, zero_expert_num=1,
    )  # fmt: skip
    planned = footprint(Skeleton(config, EncoderSettings(), Making(torch.float32)), replace(MNTP_3, tune="full"), 6, 20)
    with pytest.raises(UncountableError, match="cannot be counted without weights: the code of longcat_flash needs"):
        planned.moving(3, False, False)
    assert planned.fixed["weights"] > 0


def test_hard_negatives_are_documents(tiny_llama_folder: Path) -> None:
    settings = Supervised(batch_size=3, negatives=2, precision="fp32", tune="full")
    planned = footprint(skeleton(tiny_llama_folder), settings, 12, 11)
    assert planned.moving(12, False, False)["activations"] > 1.9 * planned.moving(12, False, False)["loss"]


def test_nothing_of_the_size_of_a_model_is_allocated() -> None:
    config = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=2, vocab_size=32000)
    made = Skeleton(config, EncoderSettings(), Making(torch.bfloat16))
    assert {weight.device.type for weight in made.parameters()} == {"meta"}
    assert footprint(made, replace(MNTP_3, precision="bf16"), 6, 512, "cuda").moving(6, False, False)["activations"]
