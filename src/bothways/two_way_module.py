"""The first module of an encoder that plain code would open causal: sentence-transformers loads the weights, bothways
makes them see both ways and measures that. bothways writes this file into such folders, and `modules.json` names it:
`SentenceTransformer(FOLDER, trust_remote_code=True)`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sentence_transformers.sentence_transformer.modules import Transformer

try:
    from bothways.opening import Reopened
except ImportError as error:
    raise ImportError(
        "This encoder sees both ways only with the code of bothways, which is not installed (or is older than the "
        "folder); any loader without it would give the vectors of a causal model. Install it with `pip install "
        "bothways`, or choose an encoder of a family that needs no code."
    ) from error


class TwoWayTransformer(Transformer):
    """A Transformer of which every token sees every token."""

    reopened: Reopened

    @classmethod
    def load(cls, model_name_or_path: str, *args: Any, **kwargs: Any) -> TwoWayTransformer:
        """Raises ConversionError if the weights are not what the certificate in bothways.json says."""
        module: TwoWayTransformer = super().load(model_name_or_path, *args, **kwargs)
        places = ("subfolder", "token", "cache_folder", "revision", "local_files_only")
        found = cls.load_file_path(
            model_name_or_path, "bothways.json", **{name: kwargs[name] for name in places if name in kwargs}
        )
        module.reopened = Reopened.of(module.model, Path(found) if found else None, model_name_or_path)
        # What recurs would run over from one text into the next one.
        module.unpad_inputs = False
        return module

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Calls the model itself, not its `forward` as stock code does: what is run both ways hangs on the call."""
        called = self.model(input_ids=features["input_ids"], attention_mask=features["attention_mask"])
        features["token_embeddings"] = called.last_hidden_state
        return features

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Writes bothways.json too, measured again."""
        super().save(output_path, *args, **kwargs)
        self.reopened.write(self.model, Path(output_path))
