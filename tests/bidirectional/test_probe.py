"""The probe finds one one-way sub-module among many, mixing in odd places, visible padding; it disturbs nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import VOCAB, tiny
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel, PreTrainedModel

from bothways.bidirectional.conversion import make_bidirectional
from bothways.bidirectional.probe import Certificate, Reach, probe
from bothways.errors import ConversionError


@pytest.fixture
def model() -> PreTrainedModel:
    model = tiny("llama", num_hidden_layers=3)
    make_bidirectional(model)
    return model


def with_mask(model: PreTrainedModel, layer: int, change: Callable[[Tensor | None, int], Tensor | None]) -> None:
    """Has one attention sub-module see another mask than the model gives it."""
    attention = model.layers[layer].self_attn
    forward = attention.forward

    def changed(hidden_states: Tensor, *args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        return forward(hidden_states, *args, attention_mask=change(attention_mask, hidden_states.shape[1]), **kwargs)

    attention.forward = changed


def causal(mask: Tensor | None, tokens: int) -> Tensor:
    past = torch.ones(1, 1, tokens, tokens, dtype=torch.bool).tril()
    return past if mask is None else past & mask


def test_one_causal_layer_is_found_although_the_whole_model_looks_bidirectional(model: PreTrainedModel) -> None:
    with_mask(model, 1, causal)
    ids = torch.arange(5, 14)[None]
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    model(inputs_embeds=embedded)[0][0, 0].sum().backward()
    assert embedded.grad is not None
    assert embedded.grad[0, -1].abs().max() > 0, "the first output sees the last token, through other layers"
    certificate = probe(model)
    assert [module.direction for module in certificate.modules] == ["bidirectional", "causal", "bidirectional"]
    assert certificate.direction == "mixed"
    with pytest.raises(ConversionError, match=r"layers\.1\.self_attn \(LlamaAttention, unpadded batch and padded"):
        certificate.require_bidirectional()


@pytest.mark.parametrize("padded", [True, False])
def test_a_layer_causal_in_one_kind_of_batch_only_is_found(model: PreTrainedModel, padded: bool) -> None:
    with_mask(model, 2, lambda mask, tokens: causal(mask, tokens) if (mask is not None) == padded else mask)
    condition = "padded" if padded else "unpadded"
    with pytest.raises(
        ConversionError, match=rf"hides the future: layers\.2\.self_attn \(LlamaAttention, {condition} b"
    ):
        probe(model).require_bidirectional("my decoder")


def test_a_lopsided_window_is_no_pass(model: PreTrainedModel) -> None:
    with_mask(model, 0, lambda mask, tokens: torch.ones(1, 1, tokens, tokens, dtype=torch.bool).tril(2))
    certificate = probe(model)
    assert certificate.modules[0].unpadded == Reach(10, 2, True)
    with pytest.raises(ConversionError, match=r"sees 10 tokens back but 2 ahead, or not all between: layers\.0"):
        certificate.require_bidirectional()


def test_a_layer_that_skips_tokens_is_no_pass(model: PreTrainedModel) -> None:
    def even_only(mask: Tensor | None, tokens: int) -> Tensor:
        places = torch.arange(tokens)
        return ((places[:, None] - places[None]) % 2 == 0)[None, None]

    with_mask(model, 0, even_only)
    assert probe(model).modules[0].unpadded == Reach(10, 10, False)
    assert probe(model).direction == "mixed"


def test_padding_that_is_seen_is_found(model: PreTrainedModel) -> None:
    with_mask(model, 1, lambda mask, tokens: None)
    certificate = probe(model)
    assert [module.sees_padding for module in certificate.modules] == [False, True, False]
    with pytest.raises(ConversionError, match=r"lets real tokens see padding: layers\.1\.self_attn\.\n  Use attn_impl"):
        certificate.require_bidirectional()


def test_mixing_outside_every_measured_sub_module_is_found(model: PreTrainedModel) -> None:
    layer = model.layers[1]
    forward = layer.forward
    layer.forward = lambda hidden_states, **kwargs: (
        forward(hidden_states, **kwargs) + 0.1 * functional.pad(hidden_states[:, :-1], (0, 0, 1, 0))
    )
    certificate = probe(model)
    assert {module.direction for module in certificate.modules} == {"bidirectional"}
    assert certificate.direction == "mixed"
    with pytest.raises(ConversionError, match=r"where it cannot be measured: layers\.1 \(LlamaDecoderLayer\)"):
        certificate.require_bidirectional()


def test_a_layer_that_does_not_mix_is_no_pass(model: PreTrainedModel) -> None:
    torch.nn.init.zeros_(model.layers[1].self_attn.o_proj.weight)
    with pytest.raises(ConversionError, match=r"does not mix tokens where it should: layers\.1\.self_attn"):
        probe(model).require_bidirectional()


def test_nothing_of_the_model_is_disturbed(model: PreTrainedModel) -> None:
    model.train()
    model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    state, buffers = torch.get_rng_state(), {key: value.clone() for key, value in model.named_buffers()}
    probe(model)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, buffers[key]) for key, value in model.named_buffers())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    model(input_ids=torch.arange(5, 12)[None])[0].sum().backward()


def test_a_model_that_fails_is_an_error_that_says_so_and_leaves_no_hook(model: PreTrainedModel) -> None:
    def broken(mask: Tensor | None, tokens: int) -> None:
        raise AttributeError("'NoneType' object has no attribute 'to'")

    with_mask(model, 2, broken)
    model.train()
    with pytest.raises(ConversionError) as refusal:
        probe(model)
    assert str(refusal.value) == (
        "llama under attn_implementation=\"sdpa\" could not be probed: AttributeError: 'NoneType' object has no "
        "attribute 'to' (unpadded batch).\n  Use another attn_implementation, or report the architecture with "
        "`bothways show --certificate`."
    )
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["llama", "mixtral", "gemma3_text", "stablelm"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_measured_as_it_is(name: str, dtype: torch.dtype) -> None:
    model = tiny(name, dtype=dtype)
    assert probe(model).direction == "causal"
    certificate = make_bidirectional(model)
    assert certificate.direction == "bidirectional"
    assert certificate.dtype == str(dtype).removeprefix("torch.")


def test_a_causal_decoder_is_certified_as_one() -> None:
    certificate = probe(tiny("gpt2"))
    certificate.require_causal()
    assert certificate.modules[0].unpadded == certificate.modules[0].padded == Reach(10, 0, True)
    converted = make_bidirectional(tiny("llama"))
    with pytest.raises(ConversionError, match=r"sees the future: layers\.0\.self_attn \(LlamaAttention\)"):
        converted.require_causal()


def test_a_certificate_survives_json() -> None:
    certificate = make_bidirectional(tiny("gpt_neo", "eager"))
    text = json.dumps(certificate.to_dict())
    assert json.loads(text)["direction"] == "bidirectional"
    assert Certificate.from_dict(json.loads(text)) == certificate


def test_a_certificate_reads_well() -> None:
    certificate = make_bidirectional(tiny("gpt_neo", "eager"))
    assert certificate.summary() == (
        "gpt_neo: bidirectional, measured in 2 mixing sub-modules (GPTNeoSelfAttention), unpadded and padded, "
        "eager, float32"
    )
    assert certificate.rows()[1] == {
        "module": "h.1.attn.attention",
        "kind": "GPTNeoSelfAttention",
        "treatment": "is_causal=False, buffer bias mirrored",
        "unpadded": "bidirectional (3 back, 3 ahead)",
        "padded": "bidirectional (3 back, 3 ahead)",
        "past : future": "0.50 : 0.50",
    }
    assert certificate.rows()[0]["unpadded"] == "bidirectional (all back, all ahead)"
    assert set(certificate.versions) == {"bothways", "transformers", "torch"}


@pytest.mark.parametrize("folder", ["stories260k", "babyllama-tok105"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_trained_weights_with_their_uneven_attention_are_measured_alike(
    shared: Path, folder: str, dtype: torch.dtype
) -> None:
    model = AutoModel.from_pretrained(shared / "models" / folder, dtype=dtype)
    assert probe(model).direction == "causal"
    assert make_bidirectional(model).direction == "bidirectional"
    assert model.config.vocab_size != VOCAB


class Around(nn.Module):
    """What a composite sub-module may do beside the attention in it, in code of its own."""

    def __init__(self, attention: nn.Module, width: int, how: str) -> None:
        super().__init__()
        self.inner, self.more, self.how = attention, nn.Linear(width, width), how

    def past(self, states: Tensor) -> Tensor:
        return self.more(states.cumsum(dim=1) / torch.arange(1, states.shape[1] + 1)[None, :, None])

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Any:
        if self.how == "before":
            return self.inner(hidden_states=self.past(hidden_states), **kwargs)
        output, *rest = self.inner(hidden_states=hidden_states, **kwargs)
        added = output + self.past(hidden_states) if self.how == "beside" else self.past(output)
        return (added, *rest)


@pytest.mark.parametrize("how", ["before", "beside", "after"])
def test_one_way_code_around_an_attention_is_no_pass(how: str) -> None:
    model = tiny("llama", num_hidden_layers=3)
    model.layers[1].self_attn = Around(model.layers[1].self_attn, 48, how)
    with pytest.raises(ConversionError, match=r"mixes tokens where it cannot be measured: .*layers\.1"):
        make_bidirectional(model)
