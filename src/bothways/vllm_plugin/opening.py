"""What makes vLLM's Transformers backend choose attention over the whole text. Torch only, nothing of vLLM."""

from __future__ import annotations

from typing import Any

from torch import nn

from bothways.engines import VLLM


def require_mendable(config: Any) -> None:
    """Nothing, or ValueError for a config that asks for what was not measured to be right."""
    family = getattr(config, "model_type", None)
    if family not in VLLM.plugin:
        raise ValueError(
            f"bothways: {family} was not measured to be right in vLLM by this plugin; it is for "
            f"{', '.join(sorted(VLLM.plugin))}. Serve the folder with `bothways serve`."
        )
    if getattr(config, "is_causal", True) is not False:
        raise ValueError(
            'bothways: config.json does not say "is_causal": false, so this is no bidirectional encoder. '
            "Export it again with `bothways export FOLDER --to vllm`."
        )


def open_attention(model: nn.Module) -> int:
    """Sets `is_causal=False` on every sub-module that has it, which is what vLLM asks; returns how many there were.

    Raises ValueError if there is none: vLLM would then serve the model causal.
    """
    found = [module for module in model.modules() if isinstance(getattr(module, "is_causal", None), bool)]
    for module in found:
        # An instance may inherit it from its class.
        vars(module)["is_causal"] = False
    if not found:
        raise ValueError(
            f"bothways: no attention of {type(model).__name__} says is_causal, so that vLLM would serve it causal. "
            "Serve the folder with `bothways serve`."
        )
    return len(found)


def require_open(model: nn.Module) -> None:
    """Nothing, or ValueError if an attention layer of vLLM's is not over the whole text, or the model has none."""
    # What the model's own class says is what vLLM takes for its default, of no layer.
    layers = (module for module in model.modules() if module is not model and hasattr(module, "attn_type"))
    kinds = {str(getattr(layer.attn_type, "value", layer.attn_type)) for layer in layers}
    if kinds != {"encoder_only"}:
        raise ValueError(
            f"bothways: vLLM made attention of the kinds {sorted(kinds)}, expected encoder_only alone: it would "
            "serve the model causal. Serve the folder with `bothways serve`, or use the vLLM that was measured "
            f"({VLLM.version})."
        )
