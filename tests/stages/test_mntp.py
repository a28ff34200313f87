"""MNTP: the reference's loss and gradients (parity), what is predicted from where (property), and that it teaches."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bothways import MNTP, Encoder, convert, mntp
from bothways.errors import ConfigError, DataError, TrainingError
from bothways.packing import packing
from bothways.stages.mntp import _Task, mntp_loss
from bothways.training.batches import Batch
from bothways.training.loop import Place
from bothways.training.mask_row import make_row
from bothways.training.masking import NOT_PREDICTED
from bothways.training.settings import Tune

SAME_KERNELS = 1.2e-7 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 2e-7
"""The goldens are of a processor with AVX-512; where there is none, the same kernels sum in another order."""
SMALL = MNTP(steps=3, batch_size=4, block_size=32, learning_rate=1e-3, precision="fp32", held_out_items=20)


@pytest.fixture
def encoder(tiny_llama_folder: Path) -> Encoder:
    return convert(tiny_llama_folder, dtype="float32", device="cpu")


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("case", ["padded", "grouped"])
@pytest.mark.parametrize("packed", [False, True])
def test_loss_and_gradients_equal_the_reference(shared: Path, family: str, case: str, packed: bool) -> None:
    """Float32, sdpa, evaluation mode: loss within 2e-6, gradients within 1.2e-7 (theirs are 1.7e-7 from float64)."""
    folder = shared / "reference" / "golden" / family
    golden = {name: value for name, value in np.load(folder / "golden.npz").items() if name.startswith(f"mntp_{case}")}
    encoder = convert(folder, dtype="float32", device="cpu")
    mask = torch.tensor(golden[f"mntp_{case}_attention_mask"]).bool()
    ids, labels = (
        [values[keep].tolist() for values, keep in zip(golden[f"mntp_{case}_{name}"], mask.numpy(), strict=True)]
        for name in ("input_ids", "labels")
    )
    with packing(encoder.model) if packed else nullcontext():
        total, count = mntp_loss(encoder, ids, labels)
    loss = total / count
    assert loss.item() == pytest.approx(float(golden[f"mntp_{case}_loss"]), abs=2e-6)
    loss.backward()
    layers, embedding = encoder.model.layers, encoder.model.get_input_embeddings()
    for weight, name in [
        (layers[0].self_attn.q_proj.weight, "grad_q0"),
        (layers[2].mlp.down_proj.weight, "grad_down2"),
    ]:
        assert weight.grad is not None
        assert np.abs(weight.grad.numpy() - golden[f"mntp_{case}_{name}"]).max() <= SAME_KERNELS
    norm = embedding.weight.grad.norm().item()
    assert norm == pytest.approx(float(golden[f"mntp_{case}_grad_embed_norm"]), rel=1e-6)


def test_a_label_is_predicted_one_position_before_it(encoder: Encoder) -> None:
    ids = torch.randint(2, 500, (3, 11))
    labels = torch.full((3, 11), NOT_PREDICTED)
    labels[0, 4], labels[2, 1], labels[1, 0] = 17, 23, 31
    found, count = mntp_loss(encoder, ids.tolist(), labels.tolist())
    with torch.no_grad():
        logits = encoder.head(encoder.model(input_ids=ids).last_hidden_state)
    # The label at position 0 is left out: nothing stands before it.
    assert count == 2
    expected = F.cross_entropy(torch.stack([logits[0, 3], logits[2, 0]]), torch.tensor([17, 23]), reduction="sum")
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_few_steps_teach_something_that_holds_on_other_texts(encoder: Encoder, real_texts: list[str]) -> None:
    settings = replace(SMALL, steps=30, batch_size=16, block_size=48, learning_rate=1e-2, tune="full", warm_up=0.1)
    mntp(encoder, real_texts, settings, show_progress=False)
    before, after = encoder.record.stages[-1]["held_out"].values()
    assert after["loss"] < before["loss"] - 1.0
    assert after["accuracy"] > before["accuracy"] + 0.02


def test_what_is_recorded(encoder: Encoder, real_texts: list[str]) -> None:
    tokenizer = encoder.tokenizer.backend_tokenizer.to_str()
    assert mntp(encoder, real_texts[:99], SMALL, show_progress=False) is encoder
    stage = encoder.record.stages[-1]
    assert stage["stage"] == "mntp"
    assert stage["settings"]["mask_rate"] == 0.2
    assert stage["settings"]["precision"] == "float32"
    assert stage["mask_token"]["token"] == "_"
    assert (stage["data"]["items"], stage["data"]["held_out_items"]) == (90, 9)
    assert len(stage["data"]["fingerprint"]) == 64
    assert np.isfinite(stage["loss"])
    assert encoder.tokenizer.backend_tokenizer.to_str() == tokenizer
    assert encoder.adapter is not None
    assert encoder.record.certificate is not None
    assert encoder.record.certificate.direction == "bidirectional"


@pytest.mark.parametrize(("tune", "train_head", "trained"), [
    ("lora", False, False), ("full", False, False), ("lora", True, True), ("full", True, True),
])  # fmt: skip
def test_an_untied_head_is_trained_only_if_asked(
    tiny_untied_folder: Path, real_texts: list[str], tune: str, train_head: bool, trained: bool
) -> None:
    encoder = convert(tiny_untied_folder, dtype="float32", device="cpu")
    head, embedding = encoder.head.weight.clone(), encoder.model.get_input_embeddings().weight.clone()
    mntp(encoder, real_texts[:60], replace(SMALL, tune=tune, train_head=train_head), show_progress=False)
    assert torch.equal(encoder.head.weight, head) != trained
    assert torch.equal(encoder.model.get_input_embeddings().weight, embedding) == (tune == "lora")


def test_a_tied_head_stays_tied(encoder: Encoder, real_texts: list[str]) -> None:
    before = encoder.head.weight.clone()
    mntp(encoder, real_texts[:60], replace(SMALL, tune="full", precision="bf16"), show_progress=False)
    assert encoder.head.weight is encoder.model.get_input_embeddings().weight
    assert not torch.equal(encoder.head.weight, before)
    with pytest.raises(ConfigError, match="the head of this model is its input embedding"):
        mntp(encoder, real_texts[:60], replace(SMALL, train_head=True), show_progress=False)


def test_no_head_is_said_with_the_way_out(encoder: Encoder, real_texts: list[str]) -> None:
    encoder.head = None
    with pytest.raises(TrainingError, match="no language-model head") as caught:
        mntp(encoder, real_texts, SMALL)
    assert encoder.record.base in str(caught.value)
    assert "--base" in str(caught.value)


@pytest.mark.usefixtures("unchecked")
def test_settings_and_data_that_do_not_fit(encoder: Encoder, real_texts: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"block_size=512.: this model was made for 256 tokens"):
        mntp(encoder, real_texts, replace(SMALL, block_size=512))
    with pytest.raises(DataError, match="mntp: no item to train on"):
        mntp(encoder, [], SMALL)
    with pytest.raises(DataError, match=r"the same text as one of the 2 that are\. Give more texts that differ"):
        mntp(encoder, real_texts[:1] * 20, SMALL)
    with pytest.raises(DataError, match="no text has a token to predict"):
        mntp(encoder, ["", ""], replace(SMALL, block_size=None))
    with pytest.raises(DataError, match=r"texts\[1\] is int"):
        mntp(encoder, ["a", 3], SMALL)


@pytest.mark.parametrize(
    "schedule", [{}, {"mask_schedule": "linear", "mask_rate_end": 0.6}, {"mask_schedule": "uniform"}]
)
@pytest.mark.parametrize("whole_words", [False, True])
def test_ranks_parts_and_packing_never_change_a_mask(
    encoder: Encoder, real_texts: list[str], schedule: dict[str, Any], whole_words: bool
) -> None:
    settings = replace(SMALL, steps=9, whole_words=whole_words, **schedule)
    task = _Task(encoder, real_texts[:60], [], settings)
    batch = Batch(step=6, epoch=2, items=[3, 1, 4, 0, 5])
    rate = {"linear": 0.2 + 0.4 * 6 / 8, "uniform": None}.get(settings.mask_schedule, 0.2)
    masked = {i: task.masking(task.rows[i], (settings.seed, 2, i), rate) for i in batch.items}
    hidden = sum(int((labels != NOT_PREDICTED).sum()) for _, labels in masked.values())
    expected, _ = mntp_loss(encoder.eval(), *zip(*masked.values(), strict=True))
    for processes, most in ((1, 5), (3, 1), (2, 2)):
        parts = [
            part.loss.detach()
            for rank in range(processes)
            for part in task.parts(batch, Place(rank, processes), partial(in_groups, most=most))
        ]
        assert sum(parts).item() == pytest.approx(expected.item() / hidden, rel=1e-5)


def in_groups(lengths: Sequence[int], most: int) -> list[list[int]]:
    places = list(range(len(lengths)))
    return [places[start : start + most] for start in range(0, len(places), most)]


def test_held_out_rows_are_measured_at_every_rate_with_the_same_masks(encoder: Encoder, real_texts: list[str]) -> None:
    settings = replace(SMALL, steps=2, held_out_rates=(0.15, 0.6), mask_schedule="uniform", learning_rate=1e-9)
    mntp(encoder, real_texts[:90], settings, show_progress=False)
    before, after = encoder.record.stages[-1]["held_out"].values()
    assert list(before) == [
        "loss", "accuracy", "loss at 0.15", "accuracy at 0.15", "loss at 0.6", "accuracy at 0.6",
    ]  # fmt: skip
    # Nothing was learnt, so that another mask would be the only difference.
    assert after == pytest.approx(before, abs=1e-5)
    fixed = _Task(encoder, real_texts[:60], real_texts[60:90], replace(SMALL, held_out_rates=(0.2,)))
    with torch.no_grad():
        scores = fixed.scores(partial(in_groups, most=7))
    assert scores["loss"] == scores["loss at 0.2"]


@pytest.mark.parametrize("tune", ["full", "lora", "dora"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merged_back_is_the_mean_of_all_that_was_trained(
    tiny_untied_folder: Path, real_texts: list[str], tune: Tune, dtype: str
) -> None:
    share, precision = 0.3, {"float32": "fp32", "bfloat16": "bf16"}[dtype]
    settings = replace(SMALL, tune=tune, train_head=True, mask_token="new", precision=precision)
    base, whole, part = (convert(tiny_untied_folder, dtype=dtype, device="cpu") for _ in range(3))
    make_row(base)
    mntp(whole, real_texts[:60], settings, show_progress=False)
    mntp(part, real_texts[:60], replace(settings, merge_back=share), show_progress=False)
    # In bfloat16 the trained weights themselves are rounded before they can be compared.
    slack = 1e-6 if dtype == "float32" else 2**-7
    trained = 0
    for (name, before), after, mean in zip(base.named_parameters(), whole.parameters(), part.parameters(), strict=True):
        expected = torch.lerp(after.float(), before.float(), share)
        assert (mean.float() - expected).abs().max() <= slack * after.abs().max().clamp(1), name
        trained += not torch.equal(before, after)
    assert trained >= 2 * 7 + 2
    scores = part.record.stages[-1]["held_out_merged"]
    assert scores["loss"] != list(part.record.stages[-1]["held_out"].values())[-1]["loss"]
    assert "held_out_merged" not in whole.record.stages[-1]


def test_the_rate_at_the_end_goes_with_its_schedule(encoder: Encoder, real_texts: list[str]) -> None:
    with pytest.raises(ConfigError, match=r'mask_schedule="fixed", mask_rate_end=0.4\).*Give both or neither'):
        mntp(encoder, real_texts[:60], replace(SMALL, mask_rate_end=0.4))
    with pytest.raises(ConfigError, match=r'mask_schedule="linear", mask_rate_end=None\)'):
        mntp(encoder, real_texts[:60], replace(SMALL, mask_schedule="linear"))


def test_rows_are_blocks_or_whole_texts(encoder: Encoder, real_texts: list[str]) -> None:
    blocks = _Task(encoder, real_texts[:60], [], SMALL)
    assert {len(row) for row in blocks.rows} == {32}
    assert {row[0] for row in blocks.rows} == {encoder.tokenizer.bos_token_id}
    texts = _Task(encoder, real_texts[:60], [], replace(SMALL, block_size=None, max_length=20))
    assert list(texts.rows) == [row.ids[:20] for row in encoder.tokenise(real_texts[:60])]
