"""A plugin of vLLM (entry point `vllm.general_plugins`): encoders whose family vLLM's own classes would serve causal.

It imports nothing but the standard library, and vLLM only when vLLM itself calls it: installed beside vLLM with
`pip install --no-deps bothways` it needs none of the package's own dependencies, some of which vLLM pins lower.
"""

from __future__ import annotations

import logging

ARCHITECTURE = "BothwaysEmbeddingModel"
"""What `bothways export --to vllm` writes as `architectures` for such a family. A vLLM without the plugin does not know
the name and refuses the folder, where its own class would serve it causal without a word."""
MODEL = f"{__name__}.model:{ARCHITECTURE}"


def register() -> None:
    """Tells vLLM the name and where its class is; nothing else changes, and nothing that fails here stops vLLM."""
    try:
        from vllm import ModelRegistry

        ModelRegistry.register_model(ARCHITECTURE, MODEL)
    except Exception as error:
        # vLLM goes on without the plugin, and refuses the folders that need it.
        logging.getLogger("vllm.bothways").warning(
            "bothways: this vLLM takes no model from a plugin (%s: %s); folders with architectures=[%s] are refused.",
            type(error).__name__,
            error,
            ARCHITECTURE,
        )
