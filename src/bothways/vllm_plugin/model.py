"""The class that vLLM imports where a folder's config.json names it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.model_executor.models.transformers import TransformersEmbeddingModel

from bothways.vllm_plugin.opening import open_attention, require_mendable, require_open

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class BothwaysEmbeddingModel(TransformersEmbeddingModel):  # type: ignore[misc, unused-ignore]
    """The model of transformers inside vLLM, with attention over the whole text.

    Raises ValueError for a folder that was not measured to be right this way.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        require_mendable(vllm_config.model_config.hf_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        # Said of what was made, so that a vLLM which goes about it otherwise does not serve causal vectors.
        require_open(self)

    def _create_attention_instances(self, *arguments: Any, **named: Any) -> Any:
        """What vLLM asks of the modules before it chooses the kind of attention is answered first."""
        open_attention(self.model)
        return super()._create_attention_instances(*arguments, **named)
