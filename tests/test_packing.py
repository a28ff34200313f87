"""Packing: packed equals one by one, in states and gradients; no text sees another; what cannot be packed is not."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from bothways.bidirectional.conversion import make_bidirectional
from bothways.packing import Sight, Texts, buckets, packing, packs, token_states

ROWS = [[5, 9, 3, 17, 4, 8, 30], [7, 7, 2], [11, 3, 6], [21], [13, 2, 9, 9, 40, 3, 1, 5, 44, 6, 12]]
"""Different lengths, two neighbours of one length, and a text of one token."""
SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "head_dim": 8,
    "initializer_range": 0.2,
    "pad_token_id": None,
}
PACKED = {
    "llama": {},
    "mistral": {"sliding_window": 4},
    "qwen3": {},
    "gemma2": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "gemma3_text": {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "gpt_oss": {"sliding_window": 4, "num_local_experts": 3, "num_experts_per_tok": 2},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "bos_token_id": None, "eos_token_id": None},
    "mixtral": {"num_local_experts": 3, "num_experts_per_tok": 2, "sliding_window": None},
    "olmo2": {},
    "phi3": {},
}
"""Families that are packed: windows, softcaps, sinks, experts, learned positions among them."""
NOT_PACKED = {
    "bloom": {"n_head": 4, "n_layer": 3},
    "falcon": {"alibi": True, "num_kv_heads": 2, "head_dim": ...},
    "mamba": {"num_hidden_layers": 3, "state_size": 5},
    "gpt_neo": {
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 4,
        "num_hidden_layers": 2,
    },
}
"""ALiBi, a recurrence that runs both ways, and attention that does not go through transformers' interface."""

FLEX_WARNS = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:flex_attention called without:UserWarning"
)
"""transformers 5.23 asks torch 2.13 for flex attention in ways that torch has since given up."""


def tiny(
    family: str, changes: dict, attn_implementation: str = "eager", dtype: torch.dtype = torch.float32
) -> nn.Module:
    torch.manual_seed(0)
    shape = {name: value for name, value in {**SHAPE, **changes}.items() if value is not ...}
    config = AutoConfig.for_model(family, **shape)
    model = AutoModel.from_config(config, attn_implementation=attn_implementation).to(dtype).eval()
    make_bidirectional(model)
    return model


def one_by_one(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> Tensor:
    return torch.cat([token_states(model, [row], 0) for row in rows])


def gradients(model: nn.Module, states: Tensor) -> dict[str, Tensor]:
    """Of a loss that weighs every number differently."""
    weights = torch.linspace(-1, 1, states.numel(), dtype=states.dtype).view_as(states).cos()
    model.zero_grad()
    (states * weights).sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def both_ways(model: PreTrainedModel) -> tuple[Tensor, dict[str, Tensor], Tensor, dict[str, Tensor]]:
    """States and gradients of the rows one by one, and packed."""
    alone = one_by_one(model, ROWS)
    expected = gradients(model, alone)
    with packing(model) as how:
        assert how.packed, how.why
        together = token_states(model, ROWS, 0)
        return alone, expected, together, gradients(model, together)


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("family", PACKED)
def test_packed_equals_one_by_one(family: str, kernel: str) -> None:
    """Float32: hidden states 1e-5 and gradients 1e-6 relative to the largest entry; windows shorter than the texts."""
    if family in ("gemma2", "gpt_oss") and kernel == "sdpa":
        pytest.skip("transformers computes softcaps and sinks in eager attention alone")
    model = tiny(family, PACKED[family], kernel)
    alone, expected, together, found = both_ways(model)
    assert (together - alone).abs().max() <= 1e-5 * alone.abs().max()
    assert found.keys() == expected.keys()
    largest = max(grad.abs().max() for grad in expected.values())
    for name, grad in found.items():
        assert (grad - expected[name]).abs().max() <= 1e-6 * largest, name
    assert model.config._attn_implementation == kernel


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_gradients_are_exact_in_float64(family: str, kernel: str) -> None:
    """1e-10 relative to the largest entry. Not Gemma, whose norms compute in float32 whatever the model does."""
    model = tiny(family, PACKED[family], kernel, torch.float64)
    expected = gradients(model, one_by_one(model, ROWS))
    with packing(model):
        found = gradients(model, token_states(model, ROWS, 0))
    largest = max(grad.abs().max() for grad in expected.values())
    assert max((found[name] - grad).abs().max() for name, grad in expected.items()) <= 1e-10 * largest


@FLEX_WARNS
@pytest.mark.parametrize("kernel", ["eager", "sdpa", "flex_attention"])
@pytest.mark.parametrize("family", ["llama", "mistral"])
@torch.no_grad()
def test_another_text_changes_no_other_bit(family: str, kernel: str) -> None:
    model = tiny(family, {**PACKED[family], "head_dim": 16}, kernel)
    other = [ROWS[0], [50, 51, 52], *ROWS[2:]]
    with packing(model) as how, torch.compiler.set_stance("force_eager"):
        assert how.packed, how.why
        before, after = (token_states(model, rows, 0).split([len(row) for row in rows]) for rows in (ROWS, other))
    for number, (one, two) in enumerate(zip(before, after, strict=True)):
        assert torch.equal(one, two) == (number != 1)


@FLEX_WARNS
@torch.no_grad()
def test_flex_packs_too() -> None:
    model = tiny("mistral", {**PACKED["mistral"], "head_dim": 16}, "flex_attention")
    # Compiling takes half a minute for every mask on CPU; what is computed is the same.
    with torch.compiler.set_stance("force_eager"):
        alone = one_by_one(model, ROWS)
        with packing(model) as how:
            assert how.packed, how.why
            assert (token_states(model, ROWS, 0) - alone).abs().max() <= 1e-5 * alone.abs().max()


@pytest.mark.parametrize("family", NOT_PACKED)
def test_what_cannot_be_packed_is_padded(family: str) -> None:
    model = tiny(family, NOT_PACKED[family])
    alone = one_by_one(model, ROWS)
    with packing(model) as how:
        assert not how.packed
        assert how.why.startswith("padded rows of like length: pack")
        together = token_states(model, ROWS, 0)
        assert how.groups([3, 9, 3], 9) == [[1], [0, 2]]
    assert (together - alone).abs().max() <= 1e-4 * alone.abs().max()
    assert model.config._attn_implementation == "eager"


@torch.no_grad()
def test_a_causal_model_stays_causal_in_each_text() -> None:
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model("llama", **SHAPE), attn_implementation="sdpa").eval()
    alone = one_by_one(model, ROWS)
    with packing(model) as how:
        assert how.packed, how.why
        assert (token_states(model, ROWS, 0) - alone).abs().max() <= 1e-5
        # Also where the model is called as anybody would, while it is set to pack.
        padded = model(input_ids=torch.tensor(ROWS[:1])).last_hidden_state[0]
        assert torch.equal(padded, alone[:7])


def test_checkpointed_layers_know_the_texts_when_they_are_computed_again() -> None:
    model = tiny("mistral", PACKED["mistral"], "sdpa").train()
    with packing(model):
        plain = gradients(model, token_states(model, ROWS, 0))
        model.activation_checkpointing_enable()
        again = gradients(model, token_states(model, ROWS, 0))
    assert all(torch.equal(grad, again[name]) for name, grad in plain.items())


def test_an_attention_that_there_is_no_packed_form_of() -> None:
    model = tiny("llama", {})
    model.config._attn_implementation = "unheard_of"
    with packing(model) as how:
        assert how.why == "padded rows of like length: there is no packed attention for it"


def test_how_far_texts_are_seen_for_kernels_that_know_bands_alone() -> None:
    texts = Texts((3, 7), torch.device("cpu"))
    assert Sight(texts, lambda batch, head, q, k: q >= k).band == (-1, 0)
    assert Sight(texts, lambda batch, head, q, k: (q - k).abs() <= 2).band == (2, 2)
    assert Sight(texts, lambda batch, head, q, k: (q // 4) == (k // 4)).band is None
    assert Sight(texts, lambda batch, head, q, k: (q - k).abs() <= 6).band == (-1, -1)
    assert texts.bounds.tolist() == [0, 3, 10]
    assert texts.bounds.dtype == torch.int32
    assert texts.runs == [(0, 1, 3), (3, 1, 7)]
    assert Texts((4, 2, 2, 5), torch.device("cpu")).runs == [(0, 1, 4), (4, 2, 2), (8, 1, 5)]


@given(st.lists(st.integers(1, 40), max_size=50), st.integers(1, 120))
def test_buckets_hold_everything_once_within_the_budget(lengths: list[int], budget: int) -> None:
    groups = buckets(lengths, budget)
    assert sorted(position for group in groups for position in group) == list(range(len(lengths)))
    for group in groups:
        longest = max(lengths[i] for i in group)
        assert len(group) * longest <= budget or len(group) == 1
        assert sum(longest - lengths[i] for i in group) <= budget / 64
    flat = [lengths[i] for group in groups for i in group]
    assert flat == sorted(flat, reverse=True)


@given(st.lists(st.integers(1, 40), max_size=50), st.integers(1, 120))
def test_packs_hold_everything_once_within_the_budget(lengths: list[int], budget: int) -> None:
    groups = packs(lengths, budget)
    assert sorted(position for group in groups for position in group) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in group) <= budget or len(group) == 1 for group in groups)
    # No two neighbours would have fitted into one.
    for one, two in pairwise(groups):
        assert sum(lengths[i] for i in [*one, two[0]]) > budget


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", ["sdpa", "flex_attention", "flash_attention_2"])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_packed_equals_one_by_one_on_cuda(family: str, kernel: str) -> None:
    """Bfloat16, varlen kernels: the states within 2 % and the gradients within 5 % of the largest entry."""
    changes = {**PACKED[family], "hidden_size": 256, "head_dim": 64}
    model = tiny(family, changes, "sdpa", torch.bfloat16).cuda()
    model.set_attn_implementation(kernel)
    make_bidirectional(model)
    alone, expected, together, found = both_ways(model)
    assert (together - alone).abs().max() <= 0.02 * alone.abs().max()
    largest = max(grad.abs().max() for grad in expected.values())
    assert all((found[name] - grad).abs().max() <= 0.05 * largest for name, grad in expected.items())
