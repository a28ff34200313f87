"""An exported folder -> what encodes as `Encoder` does, with another engine in torch's place."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bothways import hardware, loading, provenance
from bothways.artefact import EXPORTED
from bothways.encoding.front import TextEncoder
from bothways.errors import ConfigError, DataError, did_you_mean
from bothways.packing import Packing, Rows
from bothways.provenance import EncoderSettings, Record
from bothways.runners.fingerprint import Exported
from bothways.runners.onnx import OnnxRunner
from bothways.runners.openvino import OpenvinoRunner
from bothways.runners.runner import Runner, computed

Backend = Literal["onnx", "openvino"]
"""What computes an encoder in torch's place."""
RUNNERS: dict[str, type[OnnxRunner] | type[OpenvinoRunner]] = {"onnx": OnnxRunner, "openvino": OpenvinoRunner}
TORCH_ALONE = (
    *("model", "head", "adapter", "hidden_states", "embed", "forward", "parameters", "state_dict", "train"),
    *("save_pretrained", "to_sentence_transformer"),
)
"""What `Encoder` has beside this, all of it made of torch's model."""


class NotExportedError(ConfigError, AttributeError):
    """Something that only a torch model can do was asked of an exported file."""


class ExportedEncoder(TextEncoder):
    """Texts -> vectors by an exported file: all of `encode`, `encode_query` and `encode_document`; nothing is trained.

    `exported` says what the file is; `dtype_choice` in which number format it is computed, and why, where that is not
    the file's own.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        runner: Runner,
        tokenizer: PreTrainedTokenizerBase,
        settings: EncoderSettings,
        record: Record,
        exported: Exported,
    ) -> None:
        self.runner, self.exported = runner, exported
        self.tokenizer, self.settings, self.record = tokenizer, settings, record
        self.dtype_choice = hardware.Precision(self.dtype, runner.why) if runner.why else None

    @property
    def dtype(self) -> torch.dtype:
        """In which number format the file is computed; int8: its weights."""
        found: torch.dtype = getattr(torch, self.runner.number_format)
        return found

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return len(self.exported.vectors[0])

    def packing(self) -> AbstractContextManager[Packing]:
        """Rows are never packed: a file computes padded batches, of rows of like length."""
        return nullcontext(Packing(False, "an exported file computes padded batches"))

    def token_states(self, rows: Rows) -> Float[Tensor, "tokens dim"]:
        """The last hidden state of every token of some rows of ids, row after row."""
        lengths = [len(row) for row in rows]
        ids = np.full((len(rows), max(lengths)), self.tokenizer.pad_token_id or 0, dtype=np.int64)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = row
        real = np.arange(ids.shape[1]) < np.array(lengths)[:, None]
        mask = real.astype(np.int64)
        return torch.from_numpy(self.runner.run(ids, mask, mask).states[real])

    def __call__(self, *texts: Any, **more: Any) -> NoReturn:
        """Raises ConfigError: vectors with gradients need torch's model."""
        raise self._missing("forward")

    def __getattr__(self, name: str) -> NoReturn:
        if name in TORCH_ALONE:
            raise self._missing(name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def _missing(self, name: str) -> NotExportedError:
        return NotExportedError(
            f'"{name}" needs torch\'s model, and backend="{self.exported.backend}" has none: an exported file encodes '
            "and does nothing else. Open the folder that it was exported from, without backend."
        )


def opened(name_or_folder: str | Path, backend: str, wish: loading.Wish) -> ExportedEncoder:
    """The exported file of a folder, with its tokenizer and settings, and no torch model.

    Of `wish`, `revision` and `trust_remote_code` (for the tokenizer) are read, and with "openvino" `dtype`: float32,
    bfloat16 or auto. Raises ConfigError for what else is asked, or a package that is missing; DataError for a folder
    without such a file, or whose file gives other vectors than those stored beside it when it was exported.
    """
    if backend not in RUNNERS:
        raise ConfigError(f'backend="{backend}" is not known. {did_you_mean(backend, get_args(Backend))}')
    for name in ("attn_implementation", "model_kwargs"):
        if getattr(wish, name) is not None:
            raise ConfigError(f'{name} with backend="{backend}": an exported file is computed as it is. Leave it out.')
    if wish.device is not None and torch.device(wish.device).type != "cpu":
        raise ConfigError(f'device="{wish.device}" with backend="{backend}": it computes on the CPU. Leave it out.')
    folder = loading.resolve(name_or_folder, wish.revision, exported=True)
    if not (folder / EXPORTED[backend]).exists():
        raise DataError(
            f"{folder} has no {EXPORTED[backend]}. Write a folder that has: bothways export {name_or_folder} --to "
            f"{backend} --out DIR."
        )
    encoder = unchecked(folder, backend, wish)
    _require_same(encoder, folder)
    return encoder


def unchecked(folder: Path, backend: str, wish: loading.Wish, file: Path | None = None) -> ExportedEncoder:
    """The same whatever vectors the file gives; `file`: another one than the folder's own."""
    settings, record = provenance.read(folder)
    exported = Exported.read(folder)
    runner = RUNNERS[backend](file or folder / EXPORTED[backend], exported.number_format, wish.dtype)
    tokenizer = loading.load_tokenizer(folder, trust_remote_code=wish.trust_remote_code)
    return ExportedEncoder(runner, tokenizer, settings, record, exported)


def _require_same(encoder: ExportedEncoder, folder: Path) -> None:
    """The file's own vectors, and those made here of its states, are the stored ones; else DataError."""
    exported = encoder.exported
    features = encoder.collate(encoder.tokenise(exported.texts))
    found = computed(encoder.runner, features)
    pooled = encoder.pooled(torch.from_numpy(found.states), features.pool_mask).numpy()
    for vectors in (found.vectors, pooled):
        exported.require(vectors, encoder.runner.number_format, folder)
