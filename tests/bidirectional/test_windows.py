"""Sliding windows are kept, opened or narrowed as asked; where they end is measured, also beyond the probe's length."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TINY, tiny
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers import modeling_flash_attention_utils as flash

from bothways.bidirectional.certificate import Certificate
from bothways.bidirectional.conversion import make_bidirectional, plain_backend
from bothways.bidirectional.probe import probe
from bothways.bidirectional.windows import Windows, set_windows
from bothways.errors import ConfigError

WINDOWED = [(name, backend) for name, tiny in TINY.items() if tiny.windowed for backend in tiny.backends]
# gpt_neo bands a buffer of its own, in which a window of w leaves w - 1 tokens on either side.
WIDE = [case for case in WINDOWED if case[0] != "gpt_neo"]
WINDOW, LENGTH = 19, 64


def wide(name: str, backend: str) -> PreTrainedModel:
    """A window longer than the probe's texts."""
    return tiny(name, backend, sliding_window=WINDOW, max_position_embeddings=LENGTH)


def seen(model: PreTrainedModel, layer: int, tokens: int = 50, at: int = 25) -> list[int]:
    """Which tokens the attention of a layer lets token `at` see, by its gradient; all in one text."""
    states: dict[str, Tensor] = {}

    def enter(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if args:
            states["in"] = args[0].detach().requires_grad_()
            return (states["in"], *args[1:]), kwargs
        states["in"] = kwargs["hidden_states"].detach().requires_grad_()
        return args, {**kwargs, "hidden_states": states["in"]}

    attention = model.layers[layer].self_attn
    handles = [
        attention.register_forward_pre_hook(enter, with_kwargs=True),
        attention.register_forward_hook(lambda module, args, output: states.update(out=output[0])),
    ]
    model(input_ids=torch.arange(tokens)[None] + 5)
    for handle in handles:
        handle.remove()
    states["out"][0, at].square().sum().backward()
    assert states["in"].grad is not None
    return (states["in"].grad[0].abs().amax(dim=-1) > 0).nonzero().flatten().tolist()


def edges(certificate: Certificate) -> list[int | None]:
    return [mixer.window for mixer in certificate.modules]


@pytest.mark.parametrize(("name", "backend"), WIDE)
def test_an_edge_beyond_the_probe_is_measured_and_is_where_it_says(name: str, backend: str) -> None:
    model = wide(name, backend)
    certificate = make_bidirectional(model)
    assert certificate.notes == ()
    assert all(mixer.unpadded.left == certificate.tokens - 1 for mixer in certificate.modules)
    assert WINDOW in edges(certificate)
    for layer, edge in enumerate(edges(certificate)):
        reach = 25 if edge is None else edge
        assert seen(model, layer) == list(range(25 - reach, min(25 + reach, 49) + 1))


@pytest.mark.parametrize(("name", "backend"), WINDOWED)
def test_opened_windows_see_the_whole_text(name: str, backend: str) -> None:
    model = tiny(name, backend)
    certificate = make_bidirectional(model, windows="full")
    assert all(mixer.unpadded.left == mixer.unpadded.right == certificate.tokens - 1 for mixer in certificate.modules)
    assert edges(certificate) == [None] * len(certificate.modules)
    assert certificate.notes == ()


@pytest.mark.parametrize("name", ["mistral", "gemma3_text", "cohere2"])
def test_opened_windows_stay_open_when_plain_code_loads_the_folder(name: str, tmp_path: Path) -> None:
    model = wide(name, "sdpa")
    make_bidirectional(model, windows="full")
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path, attn_implementation="sdpa")
    assert all(seen(again, layer) == list(range(50)) for layer in range(2))


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_gemma_3s_own_key_halves_the_window_and_survives_a_reload(backend: str, tmp_path: Path) -> None:
    model = tiny("gemma3_text", backend, sliding_window=39, max_position_embeddings=LENGTH)
    certificate = make_bidirectional(model, windows="native")
    assert edges(certificate) == [39 // 2, None]
    assert not hasattr(model.config, "is_causal") or model.config.is_causal
    assert seen(model, 0) == list(range(25 - 39 // 2, 25 + 39 // 2 + 1))
    assert make_bidirectional(model, windows="native").difference(certificate) is None, "halved once"
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path, attn_implementation=backend)
    assert probe(again).direction == "bidirectional"
    assert seen(again, 0) == seen(model, 0)
    assert plain_backend(model, certificate) == "sdpa"


def test_a_family_without_such_a_key_says_so() -> None:
    with pytest.raises(ConfigError, match=r'windows="native": mistral has no key use_bidirectional_attention of its'):
        make_bidirectional(tiny("mistral"), windows="native")


@pytest.mark.usefixtures("unchecked")
def test_unknown_windows_are_an_error_that_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r'windows="open" is not known. Use one of keep, full, native.'):
        set_windows(tiny("mistral"), "open")  # type: ignore[arg-type]


def test_a_refused_choice_changes_nothing() -> None:
    model = tiny("mistral")
    before = model.config.to_dict()
    with pytest.raises(ConfigError):
        make_bidirectional(model, windows="native")
    assert model.config.to_dict() == before


@pytest.mark.parametrize("name", ["mistral", "gemma3_text", "phi3", "starcoder2", "cohere2"])
@pytest.mark.parametrize(("windows", "edge"), [("keep", WINDOW), ("full", 25)])
def test_under_flash_the_edge_is_where_masks_have_it(
    name: str, windows: Windows, edge: int, flash_in_plain_torch: None
) -> None:
    """Flash runs on GPUs alone: here everything is transformers' own code for it but the kernel."""
    model = tiny(name, "sdpa", sliding_window=WINDOW, max_position_embeddings=LENGTH)
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = "flash_attention_2"
    certificate = make_bidirectional(model, windows=windows)
    assert certificate.attn_implementation == "flash_attention_2"
    assert certificate.direction == "bidirectional"
    assert (WINDOW if windows == "keep" else None) in edges(certificate)
    assert seen(model, 0) == list(range(25 - edge, min(25 + edge, 49) + 1))


def test_under_flash_gemma_3s_own_key_needs_no_more(flash_in_plain_torch: None) -> None:
    model = tiny("gemma3_text", "sdpa", sliding_window=39, max_position_embeddings=LENGTH)
    model.config._attn_implementation = "flash_attention_2"
    assert edges(make_bidirectional(model, windows="native")) == [19, None]
    assert seen(model, 0) == list(range(25 - 19, 25 + 19 + 1))


@pytest.fixture
def flash_in_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel with the signature and the meaning of flash attention's, put where transformers loads the real one."""

    def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool, window_size: tuple[int, int]) -> Tensor:
        # (batch, tokens, heads, dim); -1 is no limit.
        there = torch.arange(k.shape[1])[None] - torch.arange(q.shape[1])[:, None]
        left, right = (reach if reach >= 0 else q.shape[1] for reach in window_size)
        allowed = (there >= -left) & (there <= (0 if causal else right))
        q, k, v = (item.transpose(1, 2) for item in (q, k, v))
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed, enable_gqa=True).transpose(1, 2)

    def dense(q: Tensor, k: Tensor, v: Tensor, causal: bool = False, window_size: Any = (-1, -1), **_: Any) -> Tensor:
        return attend(q, k, v, causal, window_size)

    def varlen(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        causal: bool = False,
        window_size: Any = (-1, -1),
        **_: Any,
    ) -> Tensor:
        starts = cu_seqlens_q.tolist()
        texts = [slice(*ends) for ends in pairwise(starts)]
        return torch.cat([attend(q[None, t], k[None, t], v[None, t], causal, window_size)[0] for t in texts])

    def loaded(*args: Any, **kwargs: Any) -> Any:
        arguments = flash._lazy_define_process_function(varlen)
        return (dense, varlen, None, flash._pad_input, flash._unpad_input), (arguments, arguments)

    monkeypatch.setattr(flash, "lazy_import_flash_attention", loaded)
