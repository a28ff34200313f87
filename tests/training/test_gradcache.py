"""Parity: the gradient of passes, replayed or kept, is that of one big batch. Property: what is kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bothways import Encoder, Supervised, convert
from bothways.packing import packing, packs
from bothways.text import TextIds
from bothways.training import adapters
from bothways.training.compiled import compiled
from bothways.training.dropout import dropout_of
from bothways.training.gradcache import Passes, embed_all, gradcache
from bothways.training.losses import info_nce
from bothways.training.processes import Place

ALONE = Place(0, 1)
Gradients = dict[str, Tensor]


@pytest.fixture
def encoder(tiny_llama_folder: Path) -> Encoder:
    return convert(tiny_llama_folder, dtype="float32", device="cpu")


@pytest.fixture
def rows(encoder: Encoder, real_texts: list[str]) -> list:
    """Seven queries, their documents, of many lengths, and four hard negatives."""
    return encoder.tokenise([*(t[:25] for t in real_texts[:7]), *(t[25:] for t in real_texts[:7]), *real_texts[11:15]])


def loss(vectors: Tensor) -> Tensor:
    return info_nce(vectors[:7], vectors[7:], temperature=0.1)


def run(encoder: Encoder, parts: Callable) -> tuple[float, Gradients]:
    encoder.zero_grad()
    value = 0.0
    with packing(encoder.model):
        for part in parts():
            part.loss.backward()
            value += part.loss.item()
    return value, {name: weight.grad.clone() for name, weight in encoder.named_parameters() if weight.grad is not None}


def distance(found: Gradients, expected: Gradients) -> float:
    """Largest difference, relative to the largest entry."""
    assert list(found) == list(expected)
    size = max(float(grad.abs().max()) for grad in expected.values())
    return max(float((found[name] - grad).abs().max()) for name, grad in expected.items()) / size


@pytest.mark.parametrize("tokens", [1, 150, 10**6])
@pytest.mark.parametrize("alive", [0, 300, math.inf])
def test_passes_give_the_gradient_of_one_big_batch(encoder: Encoder, rows: list, tokens: int, alive: float) -> None:
    """Float32, one thread, no dropout; queries and documents in common passes."""

    def whole() -> object:
        value = loss(encoder.embed(rows))
        yield type("Part", (), {"loss": value})

    cut = partial(packs, tokens=tokens)
    value, expected = run(encoder, whole)
    parts = partial(gradcache, encoder, rows, loss, seed=(3,), place=ALONE, cut=cut, alive=alive)
    again, found = run(encoder, parts)
    assert again == pytest.approx(value, rel=1e-6)
    assert distance(found, expected) <= 1e-6
    groups = cut([len(row) for row in rows])
    assert tokens != 150 or any(min(group) < 7 <= max(group) for group in groups)


@pytest.mark.parametrize("tokens", [1, 150])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_replayed_passes_have_the_dropout_of_the_first_time(
    encoder: Encoder, rows: list, tokens: int, implementation: str
) -> None:
    """Float32, one thread; in attention and on the embeddings."""
    encoder.model.set_attn_implementation(implementation)
    encoder.train()
    settings = {"seed": (3, 5), "place": ALONE, "cut": partial(packs, tokens=tokens)}
    found = {}
    with dropout_of(encoder.model, 0.4, 0.1):
        for alive in (0, 300, math.inf):
            found[alive] = run(encoder, partial(gradcache, encoder, rows, loss, alive=alive, **settings))
        other = run(encoder, partial(gradcache, encoder, rows, loss, **{**settings, "seed": (3, 6)}))
    for alive in (0, 300):
        assert found[alive][0] == pytest.approx(found[math.inf][0], rel=1e-6)
        assert distance(found[alive][1], found[math.inf][1]) <= 1e-6
    assert distance(other[1], found[math.inf][1]) > 0.01


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_layers_replay_their_dropout_too(encoder: Encoder, rows: list) -> None:
    """Dropout of adapters, within what is compiled."""
    adapters.attach(encoder.model, Supervised(lora_dropout=0.5), {})
    for name, weight in encoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    encoder.train()
    found, settings = [], {"seed": (3, 5), "place": ALONE, "cut": partial(packs, tokens=150)}
    torch._dynamo.reset()
    with compiled(encoder, wanted=True):
        for alive in (math.inf, 0):
            found.append(run(encoder, partial(gradcache, encoder, rows, loss, alive=alive, **settings)))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-6)
    assert distance(found[1][1], found[0][1]) <= 1e-6
    other = run(encoder, partial(gradcache, encoder, rows, loss, **{**settings, "seed": (3, 6)}))
    assert distance(other[1], found[0][1]) > 0.01


@pytest.mark.parametrize(("alive", "twice"), [(0, 4), (14, 4), (15, 3), (31, 2), (32, 1), (math.inf, 0)])
def test_the_last_passes_that_fit_are_computed_once(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, alive: float, twice: int
) -> None:
    """Of five passes with 10, 9, 8, 8 and 7 tokens; never none, and as many as the largest pass would hold."""
    lengths = [10, 9, 8, 8, 7]
    rows = [TextIds([*range(2, 2 + n)], [True] * n) for n in lengths]
    real, passes = encoder.embed, []

    def embed(given: list) -> Tensor:
        passes.append((torch.is_grad_enabled(), [len(item) for item in given]))
        return real(given)

    monkeypatch.setattr(encoder, "embed", embed)
    run(
        encoder,
        partial(
            gradcache, encoder, rows, lambda v: v.sum(), seed=(), place=ALONE, cut=partial(packs, tokens=1), alive=alive
        ),
    )
    one = [[n] for n in lengths]
    assert passes == [(False, n) for n in one[:twice]] + [(True, n) for n in one[twice:]] + [
        (True, n) for n in one[:twice]
    ]


def test_small_last_passes_are_kept_with_what_the_largest_holds(encoder: Encoder, rows: list) -> None:
    found = Passes(
        encoder, rows, (), ALONE, lambda lengths: [[0, 1, 2, 3], [4], [5], *([i] for i in range(6, len(lengths)))]
    )
    sizes = [found.tokens(number) for number in range(found.count)]
    count = found.kept(0)
    assert sum(sizes[-count:]) <= max(sizes) < sum(sizes[-count - 1 :])


def test_processes_in_step_keep_as_many_as_one_another(encoder: Encoder, rows: list) -> None:
    every = [Passes(encoder, rows, (), Place(rank, 4, in_step=True), partial(packs, tokens=90)) for rank in range(4)]
    assert len({passes.count for passes in every}) == 1
    assert any(group.weight == 0 for passes in every for group in passes.groups)
    assert {passes.kept(10**9) for passes in every} == {1}
    assert {passes.kept(math.inf) for passes in every} == {every[0].count}


def test_a_process_without_a_row_takes_part(encoder: Encoder, rows: list) -> None:
    passes = Passes(encoder, rows[:2], (), Place(2, 3), partial(packs, tokens=90))
    (group,) = passes.groups
    assert group.weight == 0
    assert len(rows[group.rows[0]]) == min(map(len, rows[:2]))
    assert passes.in_order([passes.embed(0)]).shape == (0, encoder.dim)


@pytest.mark.parametrize("alive", [0, math.inf])
def test_weights_of_the_loss_are_trained_too(encoder: Encoder, rows: list, alive: float) -> None:
    scale = torch.nn.Parameter(torch.tensor(1.7))

    def scaled(vectors: Tensor) -> Tensor:
        return loss(vectors * 0.5) * scale.exp() + (scale * vectors[0]).square().sum()

    vectors = embed_all(encoder, rows, partial(packs, tokens=150), ()).detach()
    (expected,) = torch.autograd.grad(scaled(vectors), scale)
    run(
        encoder,
        partial(gradcache, encoder, rows, scaled, seed=(), place=ALONE, cut=partial(packs, tokens=150), alive=alive),
    )
    assert scale.grad is not None
    torch.testing.assert_close(scale.grad, expected)
