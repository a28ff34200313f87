"""InfoNCE against plain loops over rows (property), and other people's losses on the same vectors (parity)."""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from beside import assert_same_value_and_gradient, cosine, leaf, theirs
from sentence_transformers.sentence_transformer import losses as peers
from torch import Tensor

from bothways.training.losses import LearnableTemperature, info_nce

OWNER = torch.tensor([0, 1, 2, 3, 4, 3, 0, 0, 1, 3, 3])
"""Of 11 documents and 5 queries: two of the queries have no hard negative, one has three."""
EVERY = ("q->d", "d->q", "q->q", "d->d")
DIRECTIONS = [("q->d", *more) for size in range(4) for more in combinations(EVERY[1:], size)]


def naive(
    queries: Tensor,
    documents: Tensor,
    temperature: float,
    *,
    ignore: Tensor | None = None,
    directions: tuple[str, ...] = ("q->d",),
    joint: bool = False,
    margin: float = math.inf,
    in_batch: bool = True,
    owner: Tensor = OWNER,
) -> float:
    """The same, as one would write it for a single query."""
    count = len(queries)
    skip = torch.zeros(count, len(documents), dtype=torch.bool) if ignore is None else ignore
    total = 0.0
    for i in range(count):
        positive = cosine(queries[i], documents[i])
        forward, backward = [positive], [positive]
        for j, document in enumerate(documents):
            if j != i and not skip[i, j] and (in_batch or owner[j] == i):
                forward.append(cosine(queries[i], document))
        for j in range(count):
            if j != i and "q->q" in directions and not skip[i, j] and not skip[j, i]:
                forward.append(cosine(queries[i], queries[j]))
            if j != i and not skip[j, i]:
                backward.append(cosine(queries[j], documents[i]))
        for j, document in enumerate(documents):
            if "d->d" in directions and owner[j] != i and not skip[i, j]:
                forward.append(cosine(documents[i], document))
        terms = [forward + backward] if joint else [forward, backward] if "d->q" in directions else [forward]
        for term in terms:
            left = [value / temperature for value in term if value is positive or not value > positive + margin]
            total += (float(np.logaddexp.reduce(left)) - positive / temperature) / len(terms)
    return total / count


def test_info_nce_is_the_naive_sum() -> None:
    queries, documents = torch.randn(5, 11), torch.randn(13, 11)
    ignore = torch.rand(5, 13) < 0.4
    found = info_nce(queries, documents, temperature=0.07, ignore=ignore)
    assert float(found) == pytest.approx(naive(queries, documents, 0.07, ignore=ignore), rel=1e-5)
    plain = info_nce(queries, documents, temperature=0.07)
    assert float(plain) == pytest.approx(naive(queries, documents, 0.07), rel=1e-5)
    assert float(found) < float(plain)


@pytest.mark.parametrize("directions", DIRECTIONS, ids="+".join)
@pytest.mark.parametrize("margin", [None, 0.1, -0.2])
@pytest.mark.parametrize("skips", [False, True], ids=["all", "ignore"])
def test_every_direction_and_mask_is_the_naive_sum(
    directions: tuple[str, ...], margin: float | None, skips: bool
) -> None:
    queries, documents = leaf(5, 3), leaf(11, 3)
    ignore = torch.rand(5, 11) < 0.3 if skips else None
    masks = {"ignore": ignore, "directions": directions}
    for joint in {False, "d->q" in directions}:
        found = info_nce(queries, documents, temperature=0.2, joint=joint, margin=margin, owner=OWNER, **masks)
        bar = math.inf if margin is None else margin
        expected = naive(queries, documents, 0.2, joint=joint, margin=bar, **masks)
        assert found.item() == pytest.approx(expected, rel=1e-9)


def test_margins_and_masks_of_the_test_above_do_mask() -> None:
    queries, documents = torch.randn(5, 3), torch.randn(11, 3)
    values = [float(info_nce(queries, documents, temperature=0.2, margin=margin)) for margin in (None, 0.1, -0.2, -3.0)]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == 4
    assert values[-1] == 0


@pytest.mark.parametrize("margin", [None, 0.05])
def test_hard_negatives_alone_are_the_naive_sum(margin: float | None) -> None:
    queries, documents = leaf(5, 3), leaf(11, 3)
    options = {"in_batch": False, "owner": OWNER}
    found = info_nce(queries, documents, temperature=0.3, margin=margin, **options)
    expected = naive(queries, documents, 0.3, margin=math.inf if margin is None else margin, **options)
    assert found.item() == pytest.approx(expected, rel=1e-9)
    (slopes,) = torch.autograd.grad(found, queries)
    assert (slopes.norm(dim=1) > 0).tolist()[2] is False  # of query 2 no hard negative exists
    assert bool(slopes.isfinite().all())


def test_a_case_by_hand() -> None:
    queries = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    documents = torch.tensor([[3.0, 0.0], [0.6, 0.8], [-1.0, 0.0]])
    # Cosines with the documents: 1, 0.6, -1 and 0, 0.8, 0; the positives are 1 and 0.8; between the queries 0.
    first = math.log(math.exp(1) + math.exp(0.6) + math.exp(-1)) - 1
    second = math.log(1 + math.exp(0.8) + 1) - 0.8
    assert float(info_nce(queries, documents, temperature=1)) == pytest.approx((first + second) / 2, rel=1e-6)
    back = (math.log(math.exp(1) + 1) - 1 + math.log(math.exp(0.6) + math.exp(0.8)) - 0.8) / 2
    both = info_nce(queries, documents, temperature=1, directions=("q->d", "d->q"))
    assert float(both) == pytest.approx(((first + second) / 2 + back) / 2, rel=1e-6)
    # 0.6 is above 1 - 0.5, so only 1 and -1 are left of the first row; nothing is above 0.8 - 0.5 in the second.
    first = math.log(math.exp(1) + math.exp(-1)) - 1
    kept = info_nce(queries, documents, temperature=1, margin=-0.5)
    assert float(kept) == pytest.approx((first + second) / 2, rel=1e-6)


@pytest.mark.parametrize("negatives", [0, 2])
@pytest.mark.parametrize("directions", DIRECTIONS, ids="+".join)
def test_one_softmax_is_sentence_transformers_joint_partition(directions: tuple[str, ...], negatives: int) -> None:
    queries, *columns = [leaf(5, 7) for _ in range(2 + negatives)]
    names = {"q->d": "query_to_doc", "d->q": "doc_to_query", "q->q": "query_to_query", "d->d": "doc_to_doc"}
    options = {"scale": 8.0, "directions": tuple(names[name] for name in directions), "partition_mode": "joint"}
    other = theirs(lambda model: peers.MultipleNegativesRankingLoss(model, **options), [queries, *columns])
    owner = torch.arange(5).repeat(1 + negatives)
    joint = "d->q" in directions
    ours = info_nce(queries, torch.cat(columns), temperature=1 / 8, directions=directions, joint=joint, owner=owner)
    assert_same_value_and_gradient(ours, other, [queries, *columns])


def test_both_ways_is_sentence_transformers_symmetric_loss() -> None:
    columns = [leaf(5, 7) for _ in range(3)]
    options = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction", "scale": 20.0}
    other = theirs(lambda model: peers.MultipleNegativesRankingLoss(model, **options), columns)
    ours = info_nce(columns[0], torch.cat(columns[1:]), temperature=0.05, directions=("q->d", "d->q"))
    assert_same_value_and_gradient(ours, other, columns)


@pytest.mark.parametrize("margin", [-0.3, 0.0, 0.3])
def test_a_margin_is_gistembed_with_the_model_as_its_guide(margin: float) -> None:
    columns = [leaf(7, 3) for _ in range(3)]

    def gist(model: torch.nn.Module) -> torch.nn.Module:
        options = {"temperature": 0.2, "margin": -margin, "contrast_positives": False}
        return peers.GISTEmbedLoss(model, guide=model, **options)

    other = theirs(gist, columns)
    ours = info_nce(columns[0], torch.cat(columns[1:]), temperature=0.2, margin=margin, directions=("q->d", "q->q"))
    # Theirs lets a query be a negative of itself unless the margin forbids it: 1 is above every positive here.
    highest = max(cosine(one, other) for one, other in zip(*columns[:2], strict=True))
    assert highest + margin < 1
    assert_same_value_and_gradient(ours, other, columns, within=1e-6)


@pytest.mark.parametrize("joint", [False, True])
def test_gradients_are_those_of_the_value(joint: bool) -> None:
    scale = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    options = {"directions": EVERY, "joint": joint, "owner": OWNER, "margin": 0.1, "ignore": torch.rand(5, 11) < 0.2}

    def loss(queries: Tensor, documents: Tensor, temperature: Tensor) -> Tensor:
        return info_nce(queries, documents, temperature=temperature, **options)

    assert torch.autograd.gradcheck(loss, (leaf(5, 3), leaf(11, 3), scale))


def test_half_precision_vectors_are_compared_in_float32() -> None:
    queries, documents = torch.randn(5, 7).bfloat16(), torch.randn(11, 7).bfloat16()
    found = info_nce(queries, documents, temperature=0.05, directions=EVERY, owner=OWNER)
    assert found.dtype == torch.float32
    exact = info_nce(queries.double(), documents.double(), temperature=0.05, directions=EVERY, owner=OWNER)
    assert float(found) == pytest.approx(float(exact), rel=1e-6)


def test_a_learned_temperature_starts_where_it_is_told_and_is_trained() -> None:
    temperature = LearnableTemperature(0.05)
    assert temperature().item() == pytest.approx(0.05, rel=1e-6)
    queries = torch.randn(5, 7)
    documents = queries + 0.1 * torch.randn(5, 7)
    loss = info_nce(queries, documents, temperature=temperature())
    assert loss.item() == pytest.approx(float(info_nce(queries, documents, temperature=0.05)), rel=1e-5)
    loss.backward()
    (log_scale,) = temperature.parameters()
    assert log_scale.grad is not None
    # Every query finds its document, so a sharper softmax is a better one.
    assert float(log_scale.grad) < 0


def test_a_learned_temperature_stays_above_its_floor_and_comes_back() -> None:
    temperature = LearnableTemperature(0.02)
    torch.nn.init.constant_(temperature.log_scale, 7.0)
    value = temperature()
    assert value.item() == pytest.approx(0.01, rel=1e-6)
    (-value).backward()
    torch.optim.SGD(temperature.parameters(), lr=50.0).step()
    assert temperature().item() > 0.015
    with pytest.raises(ValueError, match=r"start=0.004, but it stays at or above 0.01"):
        LearnableTemperature(0.004)


def test_info_nce_wants_a_document_for_every_query() -> None:
    with pytest.raises(ValueError, match="5 queries need as many documents, got 3"):
        info_nce(torch.randn(5, 7), torch.randn(3, 7), temperature=0.05)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"directions": ("q->d", "d->p")}, r'unknown direction "d->p". Use some of q->d, d->q, q->q, d->d.'),
        ({"directions": ("d->q",)}, r"directions=\('d->q',\) lack \"q->d\", which has the positive pairs. Add it."),
        ({"joint": True}, r'joint=True is about "d->q", which is not among the directions. Add it.'),
        (
            {"in_batch": False, "directions": ("q->d", "d->q"), "owner": OWNER},
            r'compare examples of a batch with one another, but in_batch=False. Leave "q->d" alone.',
        ),
        ({"in_batch": False}, r"in_batch=False asks whose the 6 hard negatives are. Give `owner`, the number of"),
        ({"directions": ("q->d", "d->d")}, r'"d->d" asks whose the 6 hard negatives are. Give `owner`'),
    ],
)
def test_what_cannot_be_computed_is_said(options: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        info_nce(torch.randn(5, 7), torch.randn(11, 7), temperature=0.05, **options)


def test_owners_are_one_for_each_document(unchecked: None) -> None:
    with pytest.raises(ValueError, match=r"11 documents, but 6 owners. Give the query of every document."):
        info_nce(torch.randn(5, 7), torch.randn(11, 7), temperature=0.05, in_batch=False, owner=OWNER[5:])


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_info_nce_equals_the_references_losses(shared: Path, family: str) -> None:
    """Float32, on the vectors that the reference itself computed; scale 20 is temperature 1/20."""
    golden = np.load(shared / "reference" / "golden" / family / "golden.npz")
    queries = torch.tensor(golden["enc_mean_skip1_inst"][:4])
    documents = torch.tensor(golden["enc_mean_skip1_noinst"][:8])
    hard = info_nce(queries, documents, temperature=1 / 20)
    assert float(hard) == pytest.approx(float(golden["hardneg_loss_scale20"]), abs=2e-6)
    in_batch = info_nce(queries, documents[:4], temperature=1 / 20)
    assert float(in_batch) == pytest.approx(float(golden["simcse_loss_scale20"]), abs=2e-6)
