"""A GGUF file read back without llama.cpp: its keys, its tensors as numbers, and the vectors that they give."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bothways.encoder import Encoder
from bothways.errors import ConfigError, DataError, VerificationError

if TYPE_CHECKING:
    from bothways.export.gguf_model import Placed
    from bothways.provenance import EncoderSettings

NEEDED = "Reading and writing GGUF needs the gguf package: pip install 'bothways[gguf]'."
CAUSAL = "attention.causal"
POOLING = "pooling_type"
POOLINGS: Mapping[str, int] = {"mean": 1, "cls": 2, "last": 3}
"""Pooling -> llama.cpp's number for it."""
MAX_LENGTH = "bothways.max_length"
NORMALIZE = "bothways.normalize"
FORMATS: Mapping[str, str] = {"f32": "float32", "f16": "float16", "q8_0": "q8_0"}
"""Number format of a file -> what `verify` calls it."""


class GgufFile:
    """The keys and tensors of a file. Raises ConfigError without the gguf package, DataError for no GGUF file."""

    def __init__(self, path: str | Path) -> None:
        try:
            from gguf import GGUFReader
        except ImportError as error:
            raise ConfigError(NEEDED) from error
        self.path = Path(path)
        if not self.path.is_file():
            raise DataError(f"{path} is not a file. Pass a .gguf file.")
        try:
            self._reader = GGUFReader(self.path)
        except (ValueError, OSError, KeyError, IndexError) as error:
            raise DataError(f"{path}: not a GGUF file that can be read: {error}") from error
        self.keys: Mapping[str, Any] = {name: field.contents() for name, field in self._reader.fields.items()}
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}

    @property
    def architecture(self) -> str:
        """llama.cpp's name for the family."""
        return str(self.keys.get("general.architecture", ""))

    def own(self, key: str) -> Any:
        """The value of a key of the architecture, or None."""
        return self.keys.get(f"{self.architecture}.{key}")

    @property
    def tensors(self) -> Iterable[str]:
        """Their names."""
        return self._tensors.keys()

    @property
    def number_format(self) -> str:
        """That of the least exact tensor, by `verify`'s names."""
        kinds = {tensor.tensor_type.name.lower() for tensor in self._tensors.values()}
        known = [FORMATS[kind] for kind in ("q8_0", "f16") if kind in kinds]
        return known[0] if known else "float32"

    def tensor(self, name: str) -> np.ndarray:
        """Its numbers, float32, in torch's order of dimensions."""
        from gguf import dequantize

        found = self._tensors[name]
        shape = tuple(int(size) for size in reversed(found.shape))
        numbers: np.ndarray = dequantize(found.data, found.tensor_type).astype(np.float32, copy=False)
        return numbers.reshape(shape)

    def kind(self, name: str) -> str:
        """The number format of a tensor: f32, f16, q8_0 or another."""
        return str(self._tensors[name].tensor_type.name).lower()

    def require_keys(self) -> None:
        """Raises VerificationError naming a key without which llama.cpp has to guess what a vector is."""
        guessed = {
            CAUSAL: "llama.cpp would let every token see only those before it",
            POOLING: "llama.cpp would give a vector of every token, or pool as whoever starts it says",
        }
        for key, consequence in guessed.items():
            if self.own(key) is None:
                raise VerificationError(
                    f"{self.path} lacks the key {self.architecture}.{key}: {consequence}. Write the file with "
                    "`bothways export --to gguf`."
                )

    def require(self, settings: EncoderSettings) -> None:
        """Raises VerificationError if the file does not say the direction and the pooling of an encoder."""
        self.require_keys()
        expected = {CAUSAL: settings.direction == "causal", POOLING: POOLINGS[settings.pooling]}
        for key, value in expected.items():
            if self.own(key) != value:
                raise VerificationError(
                    f"{self.path}: {self.architecture}.{key} is {self.own(key)}, the encoder's is {value}. Write the "
                    "file anew."
                )


class ReadBack:
    """The vectors that a file's numbers give when transformers computes with them, where there is no llama.cpp.

    The model is the encoder's, every tensor of it is the file's. Raises VerificationError as `GgufFile.require` does,
    or for a tensor that is not there.
    """

    def __init__(self, file: GgufFile, encoder: Encoder, placed: Sequence[Placed]) -> None:
        file.require(encoder.settings)
        self.name = f"{file.path} read back and computed by transformers (llama.cpp itself was not run)"
        self.max_length: int | None = encoder.settings.max_length
        self.number_format = file.number_format
        model = copy.deepcopy(encoder.model).float()
        state = model.state_dict()
        for place in placed:
            if place.name not in set(file.tensors):
                raise VerificationError(f"{file.path} has no tensor {place.name}, which {place.own} should be.")
            numbers = np.array(place.from_file(file.tensor(place.name)))
            state[place.own] = torch.from_numpy(numbers).to(encoder.device)
        model.load_state_dict(state)
        self._encoder = Encoder(model, encoder.tokenizer, replace(encoder.settings), encoder.record)

    def embed(self, texts: Sequence[str], /) -> np.ndarray:
        """One call of `Encoder.encode`."""
        found: np.ndarray = self._encoder.encode(list(texts))
        return found

    def close(self) -> None:
        """Lets go of the model."""
        del self._encoder
