"""What could undo a conversion does not, or is found out: formats, devices, compilers, other heads, remote code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import RECURRENT, VOCAB, tiny
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForTokenClassification,
    BertConfig,
    BertLMHeadModel,
    PreTrainedModel,
)

from bothways import hardware
from bothways.bidirectional.conversion import make_bidirectional, plain_backend
from bothways.bidirectional.probe import probe
from bothways.bidirectional.recurrence import runs_both_ways
from bothways.bidirectional.twin import tiny_decoder
from bothways.errors import ConversionError

KINDS = ["llama", "stablelm", "jamba", "mamba"]


def texts() -> Tensor:
    return torch.randint(5, VOCAB, (3, 11), generator=torch.Generator().manual_seed(1))


def mask() -> Tensor:
    return (torch.arange(11) < torch.tensor([5, 11, 8])[:, None]).long()


def converted(name: str) -> PreTrainedModel:
    model = tiny(name, "eager")
    make_bidirectional(model)
    return model


@torch.no_grad()
def hidden(model: Any) -> Tensor:
    states: Tensor = model(input_ids=texts(), attention_mask=mask())[0]
    return states[mask().bool()]


@pytest.mark.parametrize("name", KINDS)
def test_another_number_format_keeps_the_conversion(name: str) -> None:
    model = converted(name)
    for dtype in (torch.bfloat16, torch.float32):
        assert probe(model.to(dtype)).direction == "bidirectional"


COMPILED = """
import torch
from tiny import VOCAB, tiny
from bothways import make_bidirectional

ids = torch.randint(5, VOCAB, (3, 11), generator=torch.Generator().manual_seed(1))
mask = (torch.arange(11) < torch.tensor([5, 11, 8])[:, None]).long()
for name in ("llama", "jamba", "lfm2", "bloom"):
    model = tiny(name, "eager")
    make_bidirectional(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        states = [one(input_ids=ids, attention_mask=mask)[0][mask.bool()] for one in (model, compiled)]
    print(name, (states[0] - states[1]).abs().max().item())
"""


def test_a_compiled_model_computes_the_same_in_one_graph() -> None:
    """In a process of its own, because the compiler cannot see through these tests' checks of shapes."""
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    found = subprocess.run([sys.executable, "-c", COMPILED], env=here, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    differences = dict(line.split() for line in found.stdout.splitlines())
    assert set(differences) == {"llama", "jamba", "lfm2", "bloom"}
    assert all(float(difference) < 1e-5 for difference in differences.values())


@pytest.mark.parametrize("name", ["llama", "jamba", "mamba"])
def test_a_model_spread_over_memory_and_disk_is_converted_where_it_lies(name: str, tmp_path: Path) -> None:
    """A device map puts hooks of its own around every forward: ours goes around theirs."""
    tiny(name, "eager").save_pretrained(tmp_path / "model")
    layers = {f"layers.{number}": "disk" if number else "cpu" for number in range(2)}
    others = {"mamba": ["embeddings", "norm_f"]}.get(name, ["embed_tokens", "norm", "final_layernorm", "rotary_emb"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spread = AutoModel.from_pretrained(
            tmp_path / "model",
            attn_implementation="eager",
            device_map={**layers, **dict.fromkeys(others, "cpu")},
            offload_folder=tmp_path / "offloaded",
        )
    assert make_bidirectional(spread).direction == "bidirectional"
    assert (hidden(spread) - hidden(converted(name))).abs().max() < 1e-6


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_activation_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpointed in (False, True):
        model = converted("llama").train()
        if checkpointed:
            model.activation_checkpointing_enable({"use_reentrant": False})
        model(input_ids=texts(), attention_mask=mask())[0][mask().bool()].square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, again in zip(*gradients, strict=True):
        assert (plain - again).abs().max() <= 1e-6 * plain.abs().max().clamp(min=1)


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral", "gemma2", "stablelm"])
def test_what_a_converted_folder_says_opens_other_heads_too(name: str, tmp_path: Path) -> None:
    backend = "eager" if name in ("gemma2", "stablelm") else "sdpa"
    model = tiny(name, backend)
    assert plain_backend(model, make_bidirectional(model)) == backend
    model.save_pretrained(tmp_path)
    body = AutoModel.from_pretrained(tmp_path, attn_implementation=backend)
    assert probe(body).direction == "bidirectional"
    tagger = AutoModelForTokenClassification.from_pretrained(tmp_path, num_labels=3, attn_implementation=backend)
    assert probe(tagger).direction == "bidirectional"


@pytest.mark.parametrize("name", ["jamba", "mamba"])
def test_plain_code_opens_a_recurrence_one_way_and_the_probe_says_so(name: str, tmp_path: Path) -> None:
    model = converted(name)
    model.save_pretrained(tmp_path)
    plain = AutoModel.from_pretrained(tmp_path, attn_implementation="eager")
    with pytest.raises(ConversionError, match=r"still hides the future: layers\.0\.(mamba|mixer)"):
        probe(plain).require_bidirectional()
    make_bidirectional(plain)
    assert torch.equal(hidden(plain), hidden(model))


def test_the_fastest_attention_that_passes_is_taken() -> None:
    assert [kernel.value for kernel in hardware.attention_by_speed(torch.device("cpu"))] == ["sdpa", "eager"]
    for name, expected in (("llama", "sdpa"), ("gemma2", "eager"), ("mamba", "eager"), ("stablelm", "sdpa")):
        model = tiny(name, "eager")
        certificate = make_bidirectional(model, attn_implementation="auto")
        assert certificate.attn_implementation == model.config._attn_implementation == expected
        assert certificate.direction == "bidirectional"


def test_a_refusal_gives_the_models_own_attention_back() -> None:
    model = tiny_decoder("blt", "eager")
    with pytest.raises(ConversionError):
        make_bidirectional(model, attn_implementation="sdpa")
    assert model.config._attn_implementation == "eager"


def test_if_none_passes_the_refusal_is_that_of_the_model_and_its_own_attention_stays() -> None:
    model = tiny_decoder("blt", "eager")
    with pytest.raises(ConversionError, match="blt under attn_implementation="):
        make_bidirectional(model, attn_implementation="auto")
    assert model.config._attn_implementation == "eager"


# What transformers hands to it is on its way out in torch.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_flex_attention_is_proved_on_the_cpu() -> None:
    for name in ("llama", "gemma3_text"):
        certificate = make_bidirectional(tiny(name, "flex_attention"))
        assert certificate.attn_implementation == "flex_attention"
        plain = make_bidirectional(tiny(name, "eager"))
        assert certificate.modules == plain.modules


@pytest.mark.parametrize(
    ("name", "text", "other"), [("gemma3", "language_model", "vision"), ("qwen3_5", "language_model", "visual")]
)
def test_of_a_multimodal_model_the_text_tower_is_converted(name: str, text: str, other: str) -> None:
    model = tiny_decoder(name, "sdpa")
    certificate = make_bidirectional(model)
    assert certificate.direction == "bidirectional"
    assert all(mixer.name.startswith(text) for mixer in certificate.modules)
    assert all(text in wrapped for wrapped in runs_both_ways(model))
    assert flags_of(model, other) == flags_of(tiny_decoder(name, "sdpa"), other)
    assert not hasattr(model.config.vision_config, "is_causal")


def flags_of(model: PreTrainedModel, part: str) -> dict[str, Any]:
    return {name: getattr(module, "is_causal", None) for name, module in model.named_modules() if part in name}


@pytest.mark.parametrize("name", ["bert", "roberta", "electra"])
def test_an_encoder_is_accepted_as_it_came(name: str) -> None:
    certificate = make_bidirectional(tiny_decoder(name, "sdpa"))
    assert not certificate.converted
    assert certificate.summary().startswith(f"{name}: bidirectional as it came, nothing to convert, measured in")


def test_an_encoder_that_was_told_to_decode_is_opened() -> None:
    shape = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 56}
    config = BertConfig(vocab_size=VOCAB, is_decoder=True, **shape)
    model = BertLMHeadModel(config).eval()
    assert probe(model).direction == "causal"
    certificate = make_bidirectional(model)
    assert certificate.converted
    assert certificate.direction == "bidirectional"


HOME_MADE = """
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


class HomeConfig(PreTrainedConfig):
    model_type = "home_made"

    def __init__(self, vocab_size=103, hidden_size=48, open=False, **kwargs):
        self.vocab_size, self.hidden_size, self.open = vocab_size, hidden_size, open
        self.num_hidden_layers = 2
        super().__init__(**kwargs)


class Mix(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.open = config.open
        self.q, self.k, self.v = (nn.Linear(config.hidden_size, config.hidden_size) for _ in range(3))

    def forward(self, x, mask=None):
        scores = self.q(x) @ self.k(x).transpose(1, 2) / x.shape[-1] ** 0.5
        if not self.open:
            scores = scores.masked_fill(torch.ones_like(scores[0], dtype=torch.bool).triu(1), float("-inf"))
        if mask is not None:
            scores = scores.masked_fill(mask[:, None] == 0, torch.finfo(scores.dtype).min)
        return scores.softmax(-1) @ self.v(x)


class HomeModel(PreTrainedModel):
    config_class = HomeConfig
    base_model_prefix = "model"

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Mix(config) for _ in range(2))
        self.post_init()

    def get_input_embeddings(self):
        return self.embed

    def _init_weights(self, module):
        if hasattr(module, "weight"):
            nn.init.normal_(module.weight, std=0.3)

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, **kwargs):
        x = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        for layer in self.layers:
            x = x + layer(x, attention_mask)
        return BaseModelOutput(last_hidden_state=x)
"""


@pytest.mark.filterwarnings("ignore")
def test_code_that_a_model_brings_along_runs_only_if_trusted_and_is_probed_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "home_made.py").write_text(HOME_MADE)
    auto = {"AutoConfig": "home_made.HomeConfig", "AutoModel": "home_made.HomeModel"}
    config = {"model_type": "home_made", "vocab_size": VOCAB, "hidden_size": 48, "auto_map": auto}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoConfig.from_pretrained(folder, trust_remote_code=False)
    for is_open in (False, True):
        loaded = AutoConfig.from_pretrained(folder, trust_remote_code=True, open=is_open)
        model = AutoModel.from_config(loaded, trust_remote_code=True).eval()
        if is_open:
            certificate = make_bidirectional(model)
            assert {mixer.kind for mixer in certificate.modules} == {"Mix"}
            assert not certificate.converted
        else:
            assert probe(model).direction == "causal"
            with pytest.raises(ConversionError, match=r"still hides the future: layers\.0 \(Mix, unpadded batch and"):
                make_bidirectional(model)


@pytest.mark.parametrize("name", sorted(RECURRENT))
def test_training_a_hybrid_lowers_its_loss(name: str) -> None:
    """Learning through both directions: the first token of a text, which only the future tells, is recovered."""
    model = converted(name).train()
    ids = torch.randint(5, VOCAB, (16, 7), generator=torch.Generator().manual_seed(2))
    hint = ids.clone()
    hint[:, 0], hint[:, 3] = 4, ids[:, 0]
    head = model.get_input_embeddings().weight
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        states = model(input_ids=hint, attention_mask=torch.ones_like(hint))[0][:, 0]
        loss = torch.nn.functional.cross_entropy(states @ head.T, ids[:, 0])
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
ON_GPU = [
    (name, kernel)
    for name in ("llama", "mistral", "gemma3_text", "qwen3", "jamba")
    for kernel in ("flash_attention_2", "flash_attention_3", "flex_attention", "sdpa")
    if (name, kernel) != ("jamba", "flex_attention")  # which transformers does not have
]


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "kernel"), ON_GPU)
def test_on_a_gpu_every_kernel_sees_what_eager_sees(name: str, kernel: str) -> None:
    if kernel in PACKAGES:
        pytest.importorskip(PACKAGES[kernel])
    # Heads of 64: flash kernels take no odd sizes.
    shape = {"hidden_size": 256, "head_dim": 64, "sliding_window": 19, "max_position_embeddings": 128}
    model = tiny(name, "eager", dtype=torch.bfloat16, **shape).to("cuda")
    plain = make_bidirectional(model)
    ids, keep = texts().to("cuda"), mask().to("cuda")
    states = []
    for attention in ("eager", kernel):
        certificate = make_bidirectional(model, attn_implementation=attention)
        with torch.no_grad():
            states.append(model(input_ids=ids, attention_mask=keep)[0][keep.bool()].float())
    assert certificate.attn_implementation == kernel
    assert [(m.unpadded, m.window) for m in certificate.modules if m.attends] == [
        (m.unpadded, m.window) for m in plain.modules if m.attends
    ]
    assert (states[0] - states[1]).norm() < 0.05 * states[0].norm()


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["llama", "jamba"])
def test_on_a_gpu_a_model_in_four_bits_is_converted(name: str, tmp_path: Path) -> None:
    from transformers import BitsAndBytesConfig

    pytest.importorskip("bitsandbytes")
    tiny(name, "eager").save_pretrained(tmp_path)
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModel.from_pretrained(tmp_path, quantization_config=how, attn_implementation="eager")
    assert make_bidirectional(model).direction == "bidirectional"
