"""Biases by position look both ways alike, with padding on either side; of ALiBi the certificate would see if not."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import ALIBI, ALIBI_CASES, VOCAB, tiny
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.bloom.modeling_bloom import build_alibi_tensor

from bothways.bidirectional import biases
from bothways.bidirectional.attention import prepare, treat
from bothways.bidirectional.conversion import make_bidirectional, require_even
from bothways.bidirectional.masks import always_make_masks
from bothways.bidirectional.probe import probe
from bothways.bidirectional.twin import tiny_decoder
from bothways.errors import ConfigError, ConversionError

HEADS = 4


def texts() -> Tensor:
    return torch.randint(5, VOCAB, (2, 7), generator=torch.Generator().manual_seed(1))


def converted(name: str, backend: str) -> PreTrainedModel:
    model = tiny(name, backend, **ALIBI[name])
    make_bidirectional(model)
    return model


@pytest.mark.parametrize(("name", "backend"), ALIBI_CASES)
def test_a_flat_query_takes_as_much_from_the_past_as_from_the_future(name: str, backend: str) -> None:
    certificate = make_bidirectional(tiny(name, backend, **ALIBI[name]))
    assert certificate.direction == "bidirectional"
    assert len(certificate.modules) == 2
    for mixer in certificate.modules:
        assert mixer.balance == pytest.approx(0.5, abs=1e-4)
        assert "ALiBi mirrored" in mixer.treatment


@pytest.mark.parametrize(("name", "backend"), ALIBI_CASES)
def test_without_the_mirror_the_future_wins_and_reach_does_not_see_it(name: str, backend: str) -> None:
    model = tiny(name, backend, **ALIBI[name])
    prepare(model.config)
    treat(model)
    if name == "mpt":
        always_make_masks(model)
    certificate = probe(model)
    certificate.require_bidirectional()
    assert all(mixer.balance is not None and mixer.balance < 0.49 for mixer in certificate.modules)
    with pytest.raises(ConversionError, match=rf"{name} uses ALiBi, and a flat query of .* takes [56]\d% of what"):
        require_even(model, certificate)


def test_of_a_bias_over_the_keys_the_even_one_is_minus_slope_times_distance() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0]])
    even = biases.even_bias(build_alibi_tensor(mask, HEADS, torch.float32)).view(2, HEADS, 7, 7)
    slopes = [2.0 ** (-8 * (head + 1) / HEADS) for head in range(HEADS)]
    for row in range(2):
        real = mask[row].nonzero().flatten().tolist()
        for head, slope in enumerate(slopes):
            for i in real:
                for j in real:
                    assert even[row, head, i, j].item() == pytest.approx(-slope * abs(i - j), rel=1e-6)


@pytest.mark.parametrize(("name", "backend"), ALIBI_CASES)
def test_under_a_causal_mask_the_mirrored_bias_is_the_one_the_decoder_learned_with(name: str, backend: str) -> None:
    ids = texts()
    future = torch.full((7, 7), torch.finfo(torch.float32).min).triu(1).expand(2, 1, -1, -1)
    # bloom and falcon count the keys in the mask they are given, so there the config alone says who sees whom.
    ready = future if name == "mpt" else None
    with torch.no_grad():
        causal = tiny(name, "sdpa" if name == "falcon" else backend, **ALIBI[name])(input_ids=ids)[0]
        model = converted(name, backend)
        assert (model(input_ids=ids)[0] - causal).abs().max() > 1e-2
        if ready is None:
            model.config.is_causal = True
        assert (model(input_ids=ids, attention_mask=ready)[0] - causal).abs().max() < 1e-5 * causal.abs().max()


@pytest.mark.parametrize(("name", "backend"), ALIBI_CASES)
def test_padding_changes_nothing_on_the_right(name: str, backend: str) -> None:
    model = converted(name, backend)
    mask = torch.ones_like(texts())
    mask[0, 4:] = 0
    with torch.no_grad():
        padded = model(input_ids=texts(), attention_mask=mask)[0]
        alone = model(input_ids=texts()[:1, :4])[0]
    assert (padded[0, :4] - alone[0]).abs().max() < 1e-5 * alone.abs().max().clamp(min=1)


@pytest.mark.parametrize("name", ["bloom", "falcon"])
def test_padding_changes_nothing_on_the_left(name: str) -> None:
    model = converted(name, "eager")
    mask = torch.ones_like(texts())
    mask[0, :3] = 0
    with torch.no_grad():
        padded = model(input_ids=texts(), attention_mask=mask)[0]
        alone = model(input_ids=texts()[:1, 3:])[0]
    # falcon keeps its slopes in bfloat16, so that distances round with the place they are counted from.
    slack = 1e-5 if name == "bloom" else 1e-2
    assert (padded[0, 3:] - alone[0]).abs().max() < slack * alone.abs().max().clamp(min=1)


def test_falcons_backends_agree() -> None:
    """Unconverted, its eager attention adds the bias twice."""
    states = []
    for backend in ("eager", "sdpa"):
        with torch.no_grad():
            states.append(converted("falcon", backend)(input_ids=texts())[0])
    assert (states[0] - states[1]).abs().max() < 1e-5 * states[0].abs().max()


def test_a_falcon_without_alibi_is_left_alone() -> None:
    certificate = make_bidirectional(tiny("falcon", "sdpa", alibi=False))
    assert not any("ALiBi" in mixer.treatment for mixer in certificate.modules)
    assert not math.isnan(certificate.padding_shift)


@pytest.mark.parametrize("name", ["inkling_text", "inkling2_text"])
def test_a_learned_bias_by_distance_holds_for_what_lies_ahead_too(name: str) -> None:
    model, plain = tiny_decoder(name, "eager"), tiny_decoder(name, "eager")
    certificate = make_bidirectional(model)
    attending = [mixer for mixer in certificate.modules if mixer.attends]
    assert attending
    assert all("relative bias mirrored" in mixer.treatment for mixer in attending)
    path = f"{attending[0].name}.rel_logits_proj"
    module, before = model.get_submodule(path), plain.get_submodule(path)
    states, places = torch.randn(2, 7, 4, module.proj.shape[0]), torch.arange(7)
    with torch.no_grad():
        mirrored, one_sided = module(states, places, places), before(states, places, places)
    profile = (states @ module.proj).transpose(1, 2)
    for query in range(7):
        for key in range(7):
            distance = abs(query - key)
            expected = profile[:, :, query, distance] if distance < module.rel_extent else torch.zeros(2, 4)
            assert torch.allclose(mirrored[:, :, query, key], expected, atol=1e-6)
    assert torch.equal(mirrored.tril(), one_sided.tril())
    assert not one_sided.triu(1).any()


@pytest.mark.parametrize("name", sorted(ALIBI))
def test_a_refused_second_call_leaves_the_first_conversion_as_it_is(name: str) -> None:
    model = converted(name, "eager")
    with torch.no_grad():
        expected = model(input_ids=texts())[0]
        with pytest.raises(ConfigError):
            make_bidirectional(model, windows="native")
        assert torch.equal(model(input_ids=texts())[0], expected)
    assert all(mixer.balance == pytest.approx(0.5, abs=1e-4) for mixer in probe(model).modules)
