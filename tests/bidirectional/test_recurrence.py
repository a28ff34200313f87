"""Recurrent and convolutional mixers are run both ways: exactly, length-aware, and so that nothing undoes it."""

from __future__ import annotations

import copy
import math
import pickle
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import RECURRENT, VOCAB, tiny
from torch import Tensor
from transformers import AutoModel, DynamicCache, PreTrainedModel

from bothways.bidirectional.conversion import make_bidirectional
from bothways.bidirectional.directions import Checkpoint, Padding, Rows
from bothways.bidirectional.gate import GATE, GATE_START
from bothways.bidirectional.probe import probe
from bothways.bidirectional.recurrence import run_one_way, runs_both_ways
from bothways.errors import ConversionError

# Without attention and without positions: such a model, run both ways, does not know which way a text is read.
MIRRORED = ["mamba", "rwkv"]
LENGTHS = (5, 11, 8)


def texts(seed: int = 1) -> Tensor:
    return torch.randint(5, VOCAB, (3, 11), generator=torch.Generator().manual_seed(seed))


def mask() -> Tensor:
    return (torch.arange(11) < torch.tensor(LENGTHS)[:, None]).long()


def converted(name: str) -> PreTrainedModel:
    model = tiny(name, "eager")
    make_bidirectional(model)
    return model


def half_and_half(model: PreTrainedModel) -> PreTrainedModel:
    """Both directions count alike, as they do at the start for nobody but a test."""
    for name, parameter in model.named_parameters():
        if GATE in name:
            parameter.data.zero_()
    return model


def hidden(model: Any, ids: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
    states: Tensor = model(input_ids=texts() if ids is None else ids, attention_mask=mask() if keep is None else keep)[
        0
    ]
    return states


@given(st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=3, max_size=3))
def test_reversing_turns_the_real_tokens_and_leaves_padding_where_it_is(real: list[list[bool]]) -> None:
    keep, items = torch.tensor(real), torch.randn(3, 5, 7, 2)
    turned = Rows.of(keep.long()).reverse(items, 2)
    for row in range(3):
        places = keep[row].nonzero().flatten()
        assert torch.equal(turned[row, :, places], items[row, :, places.flip(0)])
        assert torch.equal(turned[row, :, ~keep[row]], items[row, :, ~keep[row]])
    assert torch.equal(Rows.of(keep.long()).reverse(turned, 2), items)


def test_without_padding_reversing_is_a_flip() -> None:
    items = torch.randn(3, 7, 2)
    assert torch.equal(Rows.of(None).reverse(items, 1), items.flip(1))
    assert torch.equal(Rows.of(torch.ones(3, 7)).reverse(items, 1), items.flip(1))


@pytest.mark.parametrize("name", RECURRENT)
def test_every_one_way_sub_module_is_run_both_ways(name: str) -> None:
    model = tiny(name, "eager")
    before = probe(model)
    assert before.direction == "causal"
    names, keys = [name for name, _ in model.named_parameters()], list(model.state_dict())
    certificate = make_bidirectional(model)
    assert certificate.direction == "bidirectional"
    assert certificate.padding_shift < 1e-5
    wrapped = {mixer.name for mixer in certificate.modules if mixer.treatment == "run in both directions"}
    assert wrapped == set(runs_both_ways(model))
    assert wrapped == {mixer.name for mixer in certificate.modules if not mixer.attends}
    assert [name for name, _ in model.named_parameters() if GATE not in name] == names
    assert [key for key in model.state_dict() if GATE not in key] == keys
    assert probe(model).direction == "bidirectional"
    assert not make_bidirectional(model).difference(certificate), "converting twice changes nothing"


@pytest.mark.parametrize("name", MIRRORED)
def test_a_mirrored_text_has_the_mirrored_states(name: str) -> None:
    model, rows = half_and_half(converted(name)), Rows.of(mask())
    with torch.no_grad():
        states, mirrored = hidden(model), hidden(model, rows.reverse(texts(), 1))
    real = mask().bool()
    assert (rows.reverse(mirrored, 1) - states)[real].abs().max() < 1e-5 * states.abs().max()
    assert (mirrored - states)[real].abs().max() > 1e-2


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("half", [False, True])
def test_a_two_way_sub_module_is_its_two_directions_through_its_gate(name: str, half: bool) -> None:
    model = half_and_half(converted(name)) if half else converted(name)
    layer = model.get_submodule(runs_both_ways(model)[0])
    calls: list[tuple[Any, Any, Any]] = []
    handle = layer.register_forward_hook(lambda *call: calls.append(call[1:]), with_kwargs=True)
    with torch.no_grad():
        hidden(model, texts()[:, :7], torch.ones(3, 7))
        handle.remove()
        args, kwargs, both = calls[0]
        turned = [turn(item) for item in args], {key: turn(item) for key, item in kwargs.items()}
        there, back = layer.forward(*args, **kwargs), layer.forward(*turned[0], **turned[1])
    both, there, back = (item if isinstance(item, Tensor) else item[0] for item in (both, there, back))
    share = 0.5 if half else GATE_START
    assert torch.allclose(both, (1 - share) * there + share * back.flip(1), atol=1e-6)


def turn(item: Any) -> Any:
    return item.flip(1) if isinstance(item, Tensor) and item.ndim == 3 else item


@pytest.mark.parametrize("name", RECURRENT)
def test_padding_and_its_content_change_nothing(name: str) -> None:
    model = converted(name)
    with torch.no_grad():
        padded = hidden(model)
        refilled = hidden(model, torch.where(mask().bool(), texts(), texts(seed=2)))
        for row, length in enumerate(LENGTHS):
            alone = model(input_ids=texts()[row : row + 1, :length])[0][0]
            slack = 1e-5 * alone.abs().max().clamp(min=1)
            assert (padded[row, :length] - alone).abs().max() < slack
            assert (padded[row, :length] - refilled[row, :length]).abs().max() < slack


@pytest.mark.parametrize("name", RECURRENT)
def test_gradients_reach_every_converted_mixer_from_both_sides(name: str) -> None:
    model = converted(name)
    embedded = model.get_input_embeddings()(texts()[:1]).detach().requires_grad_()
    model(inputs_embeds=embedded)[0][0, 5].square().sum().backward()
    assert embedded.grad is not None
    assert bool((embedded.grad[0].abs().amax(dim=-1) > 0).all())
    for mixer in runs_both_ways(model):
        parameters = [p for p in model.get_submodule(mixer).parameters() if p.requires_grad]
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in parameters), mixer


# Both names of the switch work; the older one is what peft and trainers still call.
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("name", ["jamba", "lfm2", "mamba", "qwen3_next"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_computes_again_with_the_padding_of_its_own_batch(name: str, reentrant: bool) -> None:
    """Another batch, padded otherwise, is computed between the forward pass and its backward pass."""
    gradients = []
    for checkpointed in (False, True):
        model = converted(name).train()
        if checkpointed:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        states = hidden(model)
        hidden(model, texts(seed=3)[:, :7], torch.ones(3, 7))
        states[mask().bool()].square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    for plain, again in zip(*gradients, strict=True):
        assert (plain - again).abs().max() <= 1e-5 * plain.abs().max().clamp(min=1)


def test_checkpoints_inside_checkpoints_leave_the_outer_ones_rows_known() -> None:
    padding = Padding()
    seen: list[Tensor | None] = []

    def outer() -> None:
        inner(lambda: seen.append(padding.rows.mirror))
        seen.append(padding.rows.mirror)

    inner = Checkpoint(lambda function, *args: function(*args), padding)
    rows = Rows.of(mask())
    # In a backward pass no model is being computed: the checkpoint alone knows the rows.
    inner._again(rows, outer)
    assert [found is rows.mirror for found in seen] == [True, True]
    with pytest.raises(ConversionError, match="outside its model's forward pass"):
        _ = padding.rows


def test_outside_a_forward_pass_nothing_is_guessed() -> None:
    model = converted("mamba")
    with pytest.raises(ConversionError, match=r"(?s)outside its model's forward pass.*activation_checkpointing_enable"):
        model.get_submodule(runs_both_ways(model)[0])(torch.randn(1, 3, 48))


def test_caches_are_kept_away() -> None:
    model = converted("lfm2")
    with torch.no_grad():
        cached = model(input_ids=texts(), attention_mask=mask(), use_cache=True)
        assert cached.past_key_values is None
        assert torch.equal(cached[0], hidden(model))
    with pytest.raises(ConversionError, match="a text is read as a whole"):
        model(input_ids=texts(), past_key_values=DynamicCache(config=model.config))


def test_a_ready_mask_is_refused_where_the_real_tokens_must_be_known() -> None:
    model = converted("jamba")
    with pytest.raises(ConversionError, match=r"attention_mask of shape \(batch, tokens\)"):
        model(input_ids=texts(), attention_mask=torch.zeros(3, 1, 11, 11))
    assert torch.isfinite(hidden(model)).all(), "the failed call left nothing behind"


@pytest.mark.parametrize("name", ["mamba", "jamba"])
def test_copies_and_pickles_are_run_both_ways_on_their_own(name: str) -> None:
    model = converted(name)
    with torch.no_grad():
        expected = hidden(model)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert runs_both_ways(twin) == runs_both_ways(model)
            for parameter in model.get_submodule(runs_both_ways(model)[0]).parameters():
                parameter.data.zero_()
            assert torch.equal(hidden(twin), expected)
            assert probe(twin).direction == "bidirectional"
            model = twin


def test_undone_nothing_is_left() -> None:
    model = tiny("jamba", "eager")
    with torch.no_grad():
        before = hidden(model)
        make_bidirectional(model)
        run_one_way(model)
        model.config.is_causal = True
        assert torch.equal(hidden(model), before)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["jamba", "mamba"])
@pytest.mark.parametrize("size", ["5GB", "40KB"])
def test_gates_that_were_trained_are_there_again_when_the_folder_is_converted(
    name: str, size: str, tmp_path: Path
) -> None:
    model = converted(name)
    with torch.no_grad():
        for number, mixer in enumerate(runs_both_ways(model)):
            model.get_submodule(mixer).get_submodule(GATE).get_parameter("logit").fill_(0.01 * number)
        expected = hidden(model)
        model.save_pretrained(tmp_path, max_shard_size=size)
        assert len(list(tmp_path.glob("*.safetensors"))) == 1 or size != "5GB"
        again = AutoModel.from_pretrained(tmp_path, attn_implementation="eager")
        make_bidirectional(again)
        assert torch.equal(hidden(again), expected)
        headed = tiny(name, "eager", head=True)
        make_bidirectional(headed)
        headed.base_model.load_state_dict(model.state_dict())
        headed.save_pretrained(tmp_path / "headed")
        trunk = AutoModel.from_pretrained(tmp_path / "headed", attn_implementation="eager")
        make_bidirectional(trunk)
        assert torch.equal(hidden(trunk), expected)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_saved_and_loaded_gives_the_same_states(tmp_path: Path) -> None:
    base = tmp_path / "base"
    converted("jamba").save_pretrained(base)

    def opened() -> PreTrainedModel:
        model = AutoModel.from_pretrained(base, attn_implementation="eager")
        make_bidirectional(model)
        return model

    wrapped = get_peft_model(opened(), LoraConfig(r=3, target_modules=["in_proj", "q_proj"], init_lora_weights=False))
    wrapped.save_pretrained(str(tmp_path / "adapter"))
    loaded = PeftModel.from_pretrained(opened(), str(tmp_path / "adapter"))
    with torch.no_grad():
        expected = hidden(wrapped.eval())
        assert (hidden(opened()) - expected).abs().max() > 1e-3
        assert (hidden(loaded.eval()) - expected).abs().max() < 1e-6
        merged = loaded.merge_and_unload()
        assert (hidden(merged) - expected).abs().max() < 1e-5
    assert probe(merged).direction == "bidirectional"


def test_threads_do_not_see_each_others_padding() -> None:
    """A server answers several at once: each call turns round the tokens of its own batch."""
    model = half_and_half(converted("mamba"))
    batches = [(texts(), mask()), (texts(seed=4)[:, :7], torch.ones(3, 7, dtype=torch.long))]
    with torch.no_grad():
        expected = [hidden(model, ids, keep) for ids, keep in batches]
    wrong: list[int] = []

    @torch.no_grad()
    def work(number: int) -> None:
        ids, keep = batches[number]
        for _ in range(15):
            if not torch.equal(hidden(model, ids, keep), expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_forward_pass_leaves_no_padding_behind(error: type[BaseException]) -> None:
    model = converted("lfm2")

    def fail(*_: Any) -> None:
        raise error

    with torch.no_grad():
        expected = model(input_ids=texts())[0]
        handle = model.layers[1].register_forward_pre_hook(fail)
        with pytest.raises(error):
            hidden(model)
        handle.remove()
        assert torch.equal(model(input_ids=texts())[0], expected)
    with pytest.raises(ConversionError, match=r"attention_mask of shape"):
        model(input_ids=texts(), attention_mask=torch.zeros(3, 1, 11, 11))


def test_gates_that_should_be_there_are_not_made_anew(tmp_path: Path) -> None:
    model = converted("lfm2")
    assert model.config.two_way_gates is True
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    kept = {key: value for key, value in tensors.items() if GATE not in key}
    assert len(kept) < len(tensors)
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    again = AutoModel.from_pretrained(tmp_path, attn_implementation="eager")
    with pytest.raises(ConversionError, match=r"saved with trained gates .* none was found for layers\.0\.conv"):
        make_bidirectional(again)
    assert not runs_both_ways(again)
    again.config.two_way_gates = False
    make_bidirectional(again)


def test_hooks_of_a_device_map_may_come_and_go() -> None:
    for first in (True, False):
        model = tiny("lfm2", "eager")
        with torch.no_grad():
            if first:
                add_hook_to_module(model.layers[0].conv, ModelHook())
            make_bidirectional(model)
            if not first:
                add_hook_to_module(model.layers[0].conv, ModelHook())
            expected = hidden(converted("lfm2"))
            assert torch.equal(hidden(model), expected)
            assert runs_both_ways(model)
            remove_hook_from_module(model.layers[0].conv)
            assert torch.equal(hidden(model), expected)
        assert runs_both_ways(model)


def test_an_adapter_of_ones_own_can_hold_the_gates(tmp_path: Path) -> None:
    config = LoraConfig(r=3, target_modules=["q_proj"], modules_to_save=[GATE])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        wrapped = get_peft_model(converted("lfm2"), config)
        for name, parameter in wrapped.named_parameters():
            if GATE in name and parameter.requires_grad:
                parameter.data.fill_(0.01)
        wrapped.save_pretrained(str(tmp_path))
        loaded = PeftModel.from_pretrained(converted("lfm2"), str(tmp_path))
    with torch.no_grad():
        assert torch.equal(hidden(loaded.eval()), hidden(wrapped.eval()))
        assert (hidden(converted("lfm2")) - hidden(wrapped)).abs().max() > 1e-3
    shares = [mixer.share for mixer in probe(loaded.base_model.model).modules if not mixer.attends]
    assert shares == pytest.approx([1 / (1 + math.exp(-1))] * len(shares), rel=1e-5)
    assert shares
