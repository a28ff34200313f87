"""Supervised: what counts as a negative, a loss that no cut of the memory changes, and that it teaches."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from bothways import Encoder, Supervised, convert, supervised
from bothways.data import Example, Origin, Policy, Rows
from bothways.errors import ConfigError, DataError, TrainingError
from bothways.packing import packing, packs
from bothways.stages.supervised import _about, _Rows, _Task, _texts
from bothways.training.batches import Order, Share
from bothways.training.contrastive import contrastive_parts
from bothways.training.dropout import Dropout
from bothways.training.loop import Place
from bothways.training.losses import cosent, info_nce
from bothways.training.objective import Objective, objective

SMALL = Supervised(steps=2, batch_size=6, max_length=24, learning_rate=1e-3, precision="fp32", held_out_items=12)
ALONE = Place(0, 1)
NONE = Dropout(None, 0)


@pytest.fixture
def encoder(tiny_llama_folder: Path) -> Encoder:
    return convert(tiny_llama_folder, dtype="float32", device="cpu")


def examples(texts: list[str], negatives: int = 2) -> list[Example]:
    return [
        Example(
            text[:25], text[25:], tuple(texts[(i + j) % len(texts)] for j in range(1, 1 + negatives)), "find the rest"
        )
        for i, text in enumerate(texts)
    ]


def sources(texts: list[str], **policies: Policy) -> Rows[Example]:
    """Examples of some sources, 20 of each, with policies of their own."""
    origins = [Origin(f"{name}.jsonl", 1.0, 20, 0, policy) for name, policy in policies.items()]
    return Rows(examples(texts[: 20 * len(origins)], negatives=1), origins=origins)


def batch_loss(encoder: Encoder, settings: Supervised, rows: list[Example]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one batch of all rows, summed over its parts."""
    encoder.zero_grad()
    pairs = _Rows(encoder, rows, settings).pairs(range(len(rows)))
    loss = 0.0
    cut = partial(packs, tokens=settings.tokens_per_batch or 8192)
    with packing(encoder.model):
        for part in contrastive_parts(encoder, pairs, objective(settings), settings, (0, 0), ALONE, cut):
            part.loss.backward()
            loss += part.loss.item()
    return loss, {name: weight.grad.clone() for name, weight in encoder.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("changes", [
    {"tokens_per_batch": 1}, {"tokens_per_batch": 100}, {"tokens_per_batch": 100, "grad_cache": True},
])  # fmt: skip
def test_the_memory_never_changes_loss_or_gradient(encoder: Encoder, real_texts: list[str], changes: dict) -> None:
    """Float32, no dropout."""
    rows = examples(real_texts[:7])
    whole, expected = batch_loss(encoder, SMALL, rows)
    cut, found = batch_loss(encoder, replace(SMALL, **changes), rows)
    assert cut == pytest.approx(whole, rel=1e-5)
    size = max(grad.abs().max() for grad in expected.values())
    assert all((found[name] - grad).abs().max() < 2e-6 * size for name, grad in expected.items())


def test_the_cached_gradient_repeats_the_dropout(encoder: Encoder, real_texts: list[str]) -> None:
    encoder.train()
    for layer in encoder.model.layers:
        layer.self_attn.attention_dropout = 0.4
    settings = replace(SMALL, tokens_per_batch=100)
    kept, expected = batch_loss(encoder, settings, examples(real_texts[:7]))
    cached, found = batch_loss(encoder, replace(settings, grad_cache=True), examples(real_texts[:7]))
    assert cached == pytest.approx(kept, rel=1e-5)
    size = max(grad.abs().max() for grad in expected.values())
    assert all((found[name] - grad).abs().max() < 2e-6 * size for name, grad in expected.items())


def test_the_loss_is_info_nce_of_the_encoders_own_vectors(encoder: Encoder, real_texts: list[str]) -> None:
    rows = examples(real_texts[:5])
    settings = replace(SMALL, negatives=2, max_length=None)
    queries = torch.tensor(encoder.encode([row.query for row in rows], instruction="find the rest"))
    negatives = [text for row in rows for text in row.negatives]
    documents = torch.tensor(encoder.encode([row.positive for row in rows] + negatives))
    found, _ = batch_loss(encoder, settings, rows)
    assert found == pytest.approx(info_nce(queries, documents, temperature=0.02).item(), rel=1e-4)


def test_instructions_stand_on_both_sides(encoder: Encoder, real_texts: list[str]) -> None:
    row = Example("a query", "a document", ("a negative",), "find", "summarise")
    rows = _Rows(encoder, [row], SMALL)
    assert rows.queries == encoder.tokenise(["a query"], "find")
    assert rows.documents == [encoder.tokenise(["a document", "a negative"], "summarise")]


def test_the_same_text_is_no_negative(encoder: Encoder) -> None:
    rows = [Example("q1", "same", ("n",)), Example("q2", "same", ("other",)), Example("q3", "own", ("same",))]
    pairs = _Rows(encoder, rows, SMALL).pairs([0, 1, 2])
    assert pairs.ignore.tolist() == [
        [True, True, False, False, False, True],
        [True, True, False, False, False, True],
        [False, False, True, False, False, False],
    ]


def test_more_negatives_than_wanted_are_drawn_anew_in_every_epoch(encoder: Encoder, real_texts: list[str]) -> None:
    rows = _Rows(encoder, examples(real_texts[:3], negatives=9), replace(SMALL, negatives=2))
    drawn = [rows._negatives(1, epoch) for epoch in range(12)]
    assert all(len(set(numbers)) == 2 for numbers in drawn)
    assert len({tuple(numbers) for numbers in drawn}) > 3
    assert drawn[5] == rows._negatives(1, 5)
    # Seen twice in one epoch, as where a source has weight 2: each time with negatives of its own.
    assert rows.pairs([1, 1], [0, 5]).documents[2:] == [
        rows.documents[1][1 + j] for n in (0, 5) for j in rows._negatives(1, n)
    ]
    none = _Rows(encoder, examples(real_texts[:3]), replace(SMALL, negatives=0)).pairs([0, 2])
    assert len(none.documents) == 2


def test_it_teaches_to_find_the_rest_of_other_texts(encoder: Encoder, real_texts: list[str]) -> None:
    settings = replace(SMALL, steps=16, batch_size=24, learning_rate=3e-3, tune="full", held_out_items=60, warm_up=0.1)
    supervised(encoder, examples(real_texts[:600], negatives=1), settings, show_progress=False)
    before, after = encoder.record.stages[-1]["held_out"].values()
    assert after["loss"] < before["loss"] - 0.2


def test_each_batch_is_of_one_source_and_has_its_temperature(encoder: Encoder, real_texts: list[str]) -> None:
    rows = sources(real_texts, a=Policy(), b=Policy(temperature=0.3))
    task = _Task(encoder, rows, [], SMALL, NONE)
    found = set()
    for step in range(6):
        batch = task.order.batch(step)
        assert {item // 20 for item in batch.items} == {batch.share}
        pairs = task.train.pairs(batch.items, batch.visits)
        vectors = torch.cat([encoder.embed([row]) for row in pairs.rows]).detach()
        with packing(encoder.model), torch.no_grad():
            loss = sum(part.loss.item() for part in task.parts(batch, ALONE, partial(packs, tokens=8192)))
        assert loss == pytest.approx(Objective((0.02, 0.3)[batch.share])(pairs, vectors).item(), rel=1e-4)
        found.add(batch.share)
    assert found == {0, 1}
    start = task.start(partial(packs, tokens=99))
    assert "each batch is of one of 2 sources" in start
    assert "4 of 40 examples, others in each epoch, wait for the next one: too few for a batch" in start
    assert "(a.jsonl 2, b.jsonl 2)" in start
    assert [source.get("policy") for source in task.facts["data"]["sources"]] == [None, {"temperature": 0.3}]


def test_mixed_batches_need_one_policy(encoder: Encoder, real_texts: list[str]) -> None:
    mixed = replace(SMALL, batching="mixed")
    task = _Task(encoder, sources(real_texts, a=Policy(temperature=0.3), b=Policy(temperature=0.3)), [], mixed, NONE)
    assert {len({item // 20 for item in task.order.batch(step).items}) for step in range(6)} == {2}
    assert task.of_share[task.order.batch(0).share].temperature == 0.3
    with pytest.raises(
        ConfigError,
        match=r'Supervised\(batching="mixed"\): temperature is None for a\.jsonl and 0\.3 for b\.jsonl, but a batch of '
        r'several sources has only one\. Use batching="homogeneous", or say the same of all\.',
    ):
        _Task(encoder, sources(real_texts, a=Policy(), b=Policy(temperature=0.3)), [], mixed, NONE)


def test_small_sources_are_seen_more_often_where_it_is_asked_for(encoder: Encoder, real_texts: list[str]) -> None:
    origins = [Origin("large", 1.0, 54, 0), Origin("small", 1.0, 6, 0)]
    rows = Rows(examples(real_texts[:60]), origins=origins)
    task = _Task(encoder, rows, [], replace(SMALL, size_exponent=0.0), NONE)
    assert sorted(task.order.batch(step).share for step in range(10)) == [0] * 5 + [1] * 5


def test_texts_are_the_same_whatever_the_instruction_and_the_side() -> None:
    rows = [
        Example("q", "a", ("n",), "find"),
        Example("q", "b", ("a",), "other"),
        Example("b", "c"),
        Example("q", "c"),
        Example("q", "c"),
    ]
    found = _texts(rows[:3], [Origin("x", 1.0, 3, 0)])
    assert found.tolist() == [[0, 1], [0, 2], [2, 3]]
    # Nothing of another example is a negative in the second source.
    hard_only = Policy(in_batch=False)
    found = _texts(rows, [Origin("x", 1.0, 3, 0), Origin("y", 1.0, 2, 0, hard_only)])
    assert found[:3].tolist() == [[0, 1], [0, 2], [2, 3]]
    assert len(set(found[3:].flatten().tolist()) - {0, 1, 2, 3}) == 4


def test_what_does_not_come_into_a_batch_is_said() -> None:
    labels = np.array([[10 + i, i % 2] for i in range(30)])
    order = Order([Share(30)], 8, 0, apart=True, texts=labels)
    assert list(_about(order, ["labels"])) == [
        "6 of 30 examples, others in each epoch, wait for the next one: too few for a batch",
        "18 more in the first epoch: a text of theirs is in every batch with room",
        "with in_batch=false for a source its texts may stand together",
    ]
    apart = np.arange(96).reshape(48, 2)
    order = Order([Share(3), Share(0), *[Share(9)] * 5], 8, 0, apart=True, texts=apart)
    assert list(_about(order, list("abcdefg"))) == [
        "each batch is of one of 7 sources",
        "one smaller batch an epoch where there are too few examples for one of 8 (a 3)",
        "5 of 48 examples, others in each epoch, wait for the next one: too few for a batch (c 1, d 1, e 1, f 1, g 1)",
    ]
    assert list(_about(Order([Share(3)], 8, 0), ["a"])) == [
        "one smaller batch an epoch where there are too few examples for one of 8 (3)"
    ]
    assert list(_about(Order([Share(16)], 8, 0, apart=True), ["a"])) == []
    many = Order([Share(9 + i) for i in range(7)], 8, 0, apart=True)
    assert list(_about(many, list("abcdefg")))[-1].endswith("(g 7, f 6, e 5, d 4, c 3, 2 more)")


def test_several_sources_resumed_equal_uninterrupted(
    tiny_llama_folder: Path, real_texts: list[str], tmp_path: Path
) -> None:
    """CPU, float32, into the second epoch."""
    settings = replace(SMALL, steps=9, save_every=8, held_out_items=0)
    ends = []
    for resume in (False, True):
        encoder = convert(tiny_llama_folder, dtype="float32", device="cpu")
        rows = sources(real_texts, a=Policy(), b=Policy(temperature=0.3))
        supervised(encoder, rows, settings, checkpoint_dir=tmp_path, resume=resume, show_progress=False)
        ends.append(encoder.state_dict())
        for path in tmp_path.iterdir():
            if path.name != "step-00000008.pt":
                path.unlink()
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000008.pt"]
    assert all(ends[1][name].equal(weight) for name, weight in ends[0].items())
    rows = sources(real_texts, a=Policy(), b=Policy(temperature=0.2))
    with pytest.raises(TrainingError, match="cannot be resumed: data sources was"):
        supervised(encoder, rows, settings, checkpoint_dir=tmp_path, resume=True, show_progress=False)


def test_refusals(encoder: Encoder, real_texts: list[str]) -> None:
    with pytest.raises(DataError, match="supervised: no item to train on"):
        supervised(encoder, [], SMALL)


def graded(texts: list[str], count: int = 24) -> list[Example]:
    """Pairs whose score is how much of the text the second one repeats."""
    return [
        Example(text[:40], f"{text[: 10 * (i % 5)]}{texts[-i - 1][10 * (i % 5) : 40]}", score=(i % 5) / 4)
        for i, text in enumerate(texts[:count])
    ]


@pytest.mark.parametrize("loss", ["cosent", "bixse"])
def test_graded_pairs_are_learnt_by_their_scores(loss: str, encoder: Encoder, real_texts: list[str]) -> None:
    settings = replace(
        SMALL, steps=30, batch_size=12, graded_loss=loss, temperature=0.1, tune="full", learning_rate=2e-3
    )
    pairs = graded(real_texts)
    stage = supervised(encoder, pairs, settings, held_out=pairs, show_progress=False).record.stages[-1]
    before, after = (stage["held_out"][step] for step in ("0", "30"))
    assert after["spearman"] > before["spearman"] + 0.1
    assert after["loss"] < before["loss"]
    assert "accuracy" not in after


def test_a_source_with_scores_has_a_loss_of_its_own(encoder: Encoder, real_texts: list[str]) -> None:
    plain, scored = examples(real_texts[:20], negatives=1), graded(real_texts, 20)
    origins = [Origin("a", 1.0, 20, 0), Origin("b", 1.0, 20, 0)]
    task = _Task(encoder, Rows([*plain, *scored], origins=origins), [], SMALL, NONE)
    assert [loss.kind for loss in task.of_share] == ["info_nce", "cosent"]
    pairs = task.train.pairs([20, 21, 22, 23, 24])
    vectors = torch.randn(10, 7)
    expected = cosent(vectors[:5], vectors[5:], torch.tensor([0, 0.25, 0.5, 0.75, 1]), temperature=0.02)
    assert task.of_share[1](pairs, vectors) == pytest.approx(expected.item(), rel=1e-5)
    with pytest.raises(ConfigError, match=r'batching="mixed"\): some sources have scores and some have none'):
        _Task(encoder, Rows([*plain, *scored], origins=origins), [], replace(SMALL, batching="mixed"), NONE)
    with pytest.raises(DataError, match=r"examples: 20 of 40 examples have a score\. Give all of them one, or put"):
        _Task(encoder, [*plain, *scored], [], SMALL, NONE)


def test_policies_decide_what_a_batch_is_told_apart_from(encoder: Encoder, real_texts: list[str]) -> None:
    hard, both = Policy(in_batch=False), Policy(symmetric=True, across=False)
    task = _Task(encoder, sources(real_texts, a=hard, b=both), [], SMALL, NONE)
    alone, two = task.of_share
    pairs, vectors = task.train.pairs([1, 2, 3, 4]), torch.randn(12, 7)
    scores = torch.nn.functional.normalize(vectors, dim=1)
    scores = scores[:4] @ scores[4:].T / 0.02
    own = torch.stack([torch.stack([scores[i, i], scores[i, 4 + i]]) for i in range(4)])
    assert alone(pairs, vectors) == pytest.approx((own.logsumexp(1) - own[:, 0]).mean().item(), rel=1e-5)
    kinds = {"temperature": 0.02, "ignore": pairs.ignore, "owner": torch.tensor(pairs.owners)}
    expected = info_nce(vectors[:4], vectors[4:], directions=("q->d", "d->q"), **kinds)
    assert two(pairs, vectors) == pytest.approx(expected.item(), rel=1e-5)
    assert not two.across
    parted = pairs.apart(2)
    assert parted.ignore[0, 1]
    assert not parted.ignore[0, 2] or pairs.ignore[0, 2]


def test_prefixes_and_spread_are_added_to_the_loss(encoder: Encoder, real_texts: list[str]) -> None:
    pairs = _Rows(encoder, examples(real_texts[:6], negatives=0), SMALL).pairs(range(6))
    vectors = torch.randn(12, 9)
    plain, shaped = (objective(replace(SMALL, **how)) for how in ({}, {"matryoshka": (3, 5), "spread_out": 0.5}))
    unit = torch.nn.functional.normalize(vectors, dim=1)
    squares = [(rows @ rows.T).square().sum() - 6 for rows in (unit[:6], unit[6:])]
    expected = sum(plain(pairs, vectors[:, :dim]) for dim in (3, 5, 9)) + 0.5 * sum(squares) / 30
    assert shaped(pairs, vectors) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("how", [{"tune": "full"}, {"tune": "lora", "grad_cache": True, "tokens_per_batch": 60}])
def test_a_temperature_that_is_learnt_moves_and_is_recorded(
    how: dict[str, object], encoder: Encoder, real_texts: list[str], tmp_path: Path
) -> None:
    settings = replace(SMALL, steps=6, save_every=3, temperature=0.05, learn_temperature=True, **how)
    rows = examples(real_texts[:30], negatives=1)
    ends = []
    for resume in (False, True):
        fresh = convert(encoder.record.base, dtype="float32", device="cpu")
        supervised(fresh, rows, settings, checkpoint_dir=tmp_path, resume=resume, show_progress=False)
        ends.append(fresh.record.stages[-1]["temperature"])
        (tmp_path / "step-00000006.pt").unlink()
        assert not hasattr(fresh, "temperature")
    assert abs(ends[0] - 0.05) > 1e-5
    assert ends[0] == ends[1]
    with pytest.raises(
        ConfigError, match=r"learn_temperature=True, temperature=0\.005\): a temperature that is learnt"
    ):
        Supervised(learn_temperature=True, temperature=0.005)


def test_graded_pairs_of_a_source_without_others_are_judged_alone(encoder: Encoder, real_texts: list[str]) -> None:
    """bixse under in_batch=False: a pair's own score and its own hard negatives, nothing of the other examples."""
    scored = [replace(example, negatives=(real_texts[-1],)) for example in graded(real_texts, 20)]
    origins = [Origin("a", 1.0, 20, 0, Policy(in_batch=False))]
    settings = replace(SMALL, graded_loss="bixse", temperature=0.5)
    task = _Task(encoder, Rows(scored, origins=origins), [], settings, NONE)
    pairs, vectors = task.train.pairs([0, 1, 2, 3]), torch.randn(12, 7)
    unit = torch.nn.functional.normalize(vectors, dim=1)
    logits = unit[:4] @ unit[4:].T / 0.5
    scores = torch.tensor([0, 0.25, 0.5, 0.75])
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    expected = bce(logits[range(4), range(4)], scores) + bce(logits[range(4), range(4, 8)], torch.zeros(4))
    assert task.of_share[0](pairs, vectors) == pytest.approx(expected.item(), rel=1e-5)


def test_more_dimensions_than_there_are_is_said(encoder: Encoder, real_texts: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"Supervised\(matryoshka=\(7, 999\)\): 999, but the vectors of this encoder"):
        supervised(encoder, examples(real_texts[:20]), replace(SMALL, matryoshka=(7, 999)))
