"""Many architectures become bidirectional and are proved to be; what cannot be proved is refused and given back."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import CASES, TINY, VOCAB, WINDOW, tiny
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BartConfig,
    BartModel,
    BertConfig,
    BertModel,
    Gemma3Config,
    PreTrainedModel,
)

from bothways.bidirectional.attention import prepare, treat
from bothways.bidirectional.conversion import make_bidirectional
from bothways.bidirectional.probe import probe
from bothways.bidirectional.twin import tiny_decoder
from bothways.errors import ConversionError

# openai-gpt expands whatever mask it is given as if it were 2-D; a 4-D one fails there with or without us.
TAKES_4D = [case for case in CASES if case[0] != "openai-gpt"]
OWN = {"openai-gpt", "gpt_neo"}


def texts(rows: int, tokens: int, seed: int = 1) -> Tensor:
    return torch.randint(5, VOCAB, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def hidden_of(model: PreTrainedModel, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    takes = inspect.signature(model.forward).parameters
    # opt and its kin count positions from the mask, which only a 2-D one allows.
    places = {"position_ids": torch.arange(ids.shape[1])[None]} if "position_ids" in takes else {}
    hidden: Tensor = model(input_ids=ids, attention_mask=mask, **places)[0]
    return hidden


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_every_sub_module_sees_both_ways(name: str, backend: str) -> None:
    model = tiny(name, backend)
    assert probe(model).direction == "causal"
    certificate = make_bidirectional(model)
    assert certificate.direction == "bidirectional"
    assert certificate.attn_implementation == backend
    assert certificate.converted
    assert len(certificate.modules) == model.config.num_hidden_layers
    for module in certificate.modules:
        assert module.unpadded == module.padded
        assert module.unpadded.left == module.unpadded.right
        assert not module.sees_padding
    lengths = {module.unpadded.left for module in certificate.modules}
    bounded = {length for length in lengths if length <= WINDOW}
    assert bool(bounded) == TINY[name].windowed
    assert certificate.padding_shift < 1e-5
    assert probe(model).direction == "bidirectional", "converting is not undone by the next look"


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_gradients_reach_exactly_as_far_as_the_certificate_says(name: str, backend: str) -> None:
    """An oracle of another kind: one mixing sub-module at a time, the others silenced, through autograd."""
    model = tiny(name, backend)
    ids, middle = texts(1, 13), 6
    certificate = make_bidirectional(model)
    for mixer in certificate.modules:
        others = [other.name for other in certificate.modules if other.name != mixer.name]
        with silenced(model, others):
            embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
            model(inputs_embeds=embedded)[0][0, middle].square().sum().backward()
        assert embedded.grad is not None
        seen = embedded.grad[0].abs().amax(dim=-1) > 0
        left, right = mixer.unpadded.left, mixer.unpadded.right
        assert seen.tolist() == [middle - left <= token <= middle + right for token in range(13)]


@contextmanager
def silenced(model: nn.Module, names: list[str]) -> Iterator[None]:
    def silence(module: nn.Module, args: Any, output: Any) -> Any:
        return 0 * output if isinstance(output, Tensor) else type(output)([0 * output[0], *output[1:]])

    with ExitStack() as stack:
        for name in names:
            stack.enter_context(model.get_submodule(name).register_forward_hook(silence))
        yield


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_right_padding_and_its_content_change_nothing(name: str, backend: str) -> None:
    model = tiny(name, backend)
    make_bidirectional(model)
    ids = texts(3, 11)
    mask = torch.ones_like(ids)
    mask[0, 5:], mask[2, 8:] = 0, 0
    with torch.no_grad():
        padded = model(input_ids=ids, attention_mask=mask)[0]
        refilled = model(input_ids=torch.where(mask.bool(), ids, texts(3, 11, seed=2)), attention_mask=mask)[0]
        for row, length in enumerate((5, 11, 8)):
            alone = model(input_ids=ids[row : row + 1, :length])[0][0]
            slack = 1e-5 * alone.abs().max().clamp(min=1)
            assert (padded[row, :length] - alone).abs().max() < slack
            assert (padded[row, :length] - refilled[row, :length]).abs().max() < slack


@pytest.mark.parametrize(("name", "backend"), TAKES_4D)
def test_a_ready_4d_mask_is_honoured(name: str, backend: str) -> None:
    """A converted model under a causal mask is the decoder it came from."""
    tokens = WINDOW - 1 if TINY[name].windowed else 5
    ids = texts(2, tokens)
    future = torch.full((tokens, tokens), torch.finfo(torch.float32).min).triu(1).expand(2, 1, -1, -1)
    model = tiny(name, backend)
    with torch.no_grad():
        causal = hidden_of(model, ids)
        make_bidirectional(model)
        assert (hidden_of(model, ids) - causal).abs().max() > 1e-2
        assert (hidden_of(model, ids, future) - causal).abs().max() < 1e-5 * causal.abs().max().clamp(min=1)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_left_padding_changes_nothing_where_positions_are_relative(backend: str) -> None:
    model = tiny("qwen3", backend)
    make_bidirectional(model)
    ids = texts(2, 9)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    with torch.no_grad():
        padded = model(input_ids=ids, attention_mask=mask)[0]
        alone = model(input_ids=ids[:1, 4:])[0]
    assert (padded[0, 4:] - alone[0]).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["cpmant", "deepseek_v4", "blt"])
def test_what_cannot_be_proved_is_refused_by_name_and_given_back(name: str) -> None:
    model = tiny_decoder(name, "eager").train()
    before = model.config.to_dict()
    flags = [vars(module).get("is_causal") for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ConversionError, match=name) as refusal:
        make_bidirectional(model)
    assert "bothways show --certificate" in str(refusal.value)
    assert model.config.to_dict() == before
    assert [vars(module).get("is_causal") for module in model.modules()] == flags
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks or "forward" in vars(module) for module in model.modules())
    assert model.training


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cpmant", "of their size (at most 1e-03 is allowed): the model ignores attention_mask."),
        ("deepseek_v4", "self_attn (DeepseekV4Attention, unpadded batch and padded batch)"),
        ("blt", "cross_attn_layers.0 (BltCrossAttention, unpadded batch and padded batch)"),
    ],
)
def test_a_refusal_names_the_sub_module_or_the_reason(name: str, reason: str) -> None:
    with pytest.raises(ConversionError, match=re.escape(reason)):
        make_bidirectional(tiny_decoder(name, "eager"))


def test_an_encoder_decoder_is_refused() -> None:
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    model = BartModel(BartConfig(vocab_size=VOCAB, d_model=48, max_position_embeddings=64, **sizes))
    with pytest.raises(ConversionError, match="bart is an encoder-decoder, or the decoder half of one: its encoder"):
        make_bidirectional(model)


def test_an_encoder_passes_as_it_is() -> None:
    config = BertConfig(vocab_size=VOCAB, hidden_size=48, num_hidden_layers=2, num_attention_heads=4)
    model = BertModel(config).eval()
    ids = texts(2, 7)
    with torch.no_grad():
        before = model(input_ids=ids)[0]
        certificate = make_bidirectional(model)
        assert certificate.direction == "bidirectional"
        assert not certificate.converted
        assert torch.equal(model(input_ids=ids)[0], before)


@pytest.mark.parametrize("name", ["stablelm", "nemotron"])
def test_the_config_flag_alone_leaves_some_kernels_causal(name: str) -> None:
    model = tiny(name, "sdpa")
    prepare(model.config)
    certificate = probe(model)
    assert certificate.direction == "mixed"
    assert all(module.unpadded.direction() == "causal" for module in certificate.modules)
    assert all(module.padded.direction() == "bidirectional" for module in certificate.modules)
    with pytest.raises(ConversionError) as refusal:
        certificate.require_bidirectional()
    kind = type(model.layers[0].self_attn).__name__
    assert str(refusal.value) == (
        f'{name} under attn_implementation="sdpa" still hides the future: '
        f"layers.0.self_attn ({kind}, unpadded batch).\n"
        '  Use attn_implementation="eager", or report the architecture with `bothways show --certificate`.'
    )


def test_the_config_flag_alone_leaves_chunked_layers_causal() -> None:
    model = tiny("llama4_text")
    model.config.is_causal = False
    directions = [module.direction for module in probe(model).modules]
    chunked = [kind == "chunked_attention" for kind in model.config.layer_types]
    assert any(chunked)
    assert [direction == "bidirectional" for direction in directions] == [not kind for kind in chunked]


@pytest.mark.parametrize("name", sorted(OWN))
def test_the_config_flag_alone_leaves_mask_buffers_causal(name: str) -> None:
    model = tiny(name, "eager")
    prepare(model.config)
    assert probe(model).direction == "causal"


def test_a_mirrored_buffer_keeps_its_window_and_a_decay_is_left_alone() -> None:
    layer = nn.Module()
    window = torch.ones(7, 7).tril().triu(-2)
    decay = torch.exp(-torch.arange(7.0)[:, None] + torch.arange(7.0)[None]).tril()
    layer.register_buffer("bias", window.clone())
    layer.register_buffer("decay", decay.clone())
    layer.register_buffer("strict", torch.ones(7, 7).tril(-1))
    assert treat(layer) == {"": "buffer bias mirrored"}
    places = torch.arange(7)
    assert torch.equal(layer.bias, ((places[:, None] - places[None]).abs() <= 2).float())
    assert torch.equal(layer.decay, decay)


def test_configs_of_other_media_are_left_alone() -> None:
    config = Gemma3Config()
    prepare(config)
    assert config.is_causal is False
    assert config.text_config.is_causal is False
    assert config.text_config.use_cache is False
    assert not hasattr(config.vision_config, "is_causal")


def test_causal_undoes_what_a_config_says() -> None:
    model = tiny("llama")
    prepare(model.config)
    prepare(model.config, "causal")
    assert probe(model).direction == "causal"


@pytest.mark.parametrize("name", ["llama", "llama4_text", "gpt2"])
def test_a_saved_model_is_bidirectional_when_plain_code_loads_it(name: str, tmp_path: Path) -> None:
    model = tiny(name)
    make_bidirectional(model)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path, attn_implementation="sdpa")
    assert probe(again).direction == "bidirectional"
    ids = texts(2, 7)
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids)[0], model(input_ids=ids)[0])


def test_a_model_with_its_head_converts_and_no_longer_generates(tmp_path: Path) -> None:
    model = tiny("llama", head=True)
    certificate = make_bidirectional(model)
    assert [module.name for module in certificate.modules] == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    ids = texts(2, 7)
    for one in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with pytest.raises(ConversionError, match="made bidirectional and would write nonsense"):
            one.generate(ids)
        assert torch.equal(one(input_ids=ids).logits, model(input_ids=ids).logits)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    make_bidirectional(again)
    with pytest.raises(ConversionError, match="made bidirectional and would write nonsense"):
        again.generate(ids)


# peft 0.21 asks transformers by a name that 5.23 has deprecated.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_lora_on_a_converted_model_keeps_the_conversion() -> None:
    model = tiny("llama")
    make_bidirectional(model)
    wrapped = get_peft_model(model, LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj"]))
    certificate = probe(wrapped.base_model.model)
    assert certificate.direction == "bidirectional"
    assert {module.kind for module in certificate.modules} == {"LlamaAttention"}
