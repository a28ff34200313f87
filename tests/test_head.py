"""Parity: the head alone gives the logits of the model it was taken from, or is refused."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM as Causal
from transformers import Cohere2Config, Gemma2Config, GPT2Config, GPTJConfig, GraniteConfig, PreTrainedConfig

from bothways.errors import ConversionError
from bothways.head import head_of

SMALL = {"vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
CONFIGS = [
    Gemma2Config(**SMALL, num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.1),
    GraniteConfig(**SMALL, num_key_value_heads=1, logits_scaling=4.0),
    Cohere2Config(**SMALL, num_key_value_heads=1, logit_scale=0.25),
    GPT2Config(vocab_size=31, n_embd=16, n_layer=1, n_head=2),
    GPTJConfig(vocab_size=31, n_embd=16, n_layer=1, n_head=2, rotary_dim=4, tie_word_embeddings=False),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_head_gives_the_models_own_logits(config: PreTrainedConfig) -> None:
    model = Causal.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("lm_head.bias"):
            torch.nn.init.normal_(parameter)
    head = head_of(model)
    ids = torch.tensor([[3, 5, 7, 11]])
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        found = head(model.base_model(input_ids=ids).last_hidden_state)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert head.tied == config.tie_word_embeddings


def test_a_head_that_computes_something_else_is_refused() -> None:
    model = Causal.from_config(CONFIGS[1]).eval()
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits * 2)
    with pytest.raises(ConversionError, match="computes its logits in a way that is not known here"):
        head_of(model)
