"""Encoder: a bidirectional decoder, its tokenizer and its pooling. The only class a user must meet."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bothways import artefact, hardware, loading, runners, stock
from bothways.artefact import Adapter
from bothways.bidirectional.attention import says_bidirectional
from bothways.encoding.front import Instructions, TextEncoder
from bothways.errors import ConfigError
from bothways.folders import new_folder
from bothways.head import Head
from bothways.opening import opened
from bothways.packing import Packing, Rows, packing, token_states
from bothways.pooling import pool
from bothways.provenance import EncoderSettings, Record
from bothways.runners import Backend, ExportedEncoder
from bothways.text import Features, TextIds

TAKEN = "Choose another folder, or pass overwrite=True."
FAITHFUL = 0.99
"""Cosine to the vectors of the checkpoint's own number format below which dtype="auto" keeps that."""
SAMPLE_TEXTS = ("How do I open a compressed file?", "The signature of the certificate is invalid.", "A short text")


class Encoder(TextEncoder, nn.Module):
    """Texts -> vectors. Made by `convert` or `Encoder.from_pretrained`; trained by the stages.

    `model` is the plain Hugging Face trunk, already bidirectional; `head` its language-model head, kept for MNTP, or
    None; `settings` what is stored in the folder; `record` what was done so far.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: EncoderSettings,
        record: Record,
        head: Head | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.head = head
        self.tokenizer = tokenizer
        self.settings = settings
        self.record = record
        self.adapter: Adapter | None = None
        self.dtype_choice: hardware.Precision | None = None
        """What dtype="auto" chose, and why."""
        self._packings: dict[tuple[str, torch.dtype, torch.device], Packing] = {}
        """What `packing` has measured, by attention implementation, number format and device."""

    @overload
    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path,
        *,
        backend: Backend,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
    ) -> ExportedEncoder: ...

    @overload
    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path,
        *,
        backend: None = None,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> Encoder: ...

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path,
        *,
        backend: Backend | None = None,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> Encoder | ExportedEncoder:
        """Load a bothways folder, or a sentence-transformers folder of Transformer + Pooling (+ Normalize).

        `dtype` None keeps the checkpoint's; "auto" lets the hardware decide, measures what that does to the vectors
        of a few texts, and says both in `dtype_choice`. `attn_implementation` "auto" takes the
        fastest that passes the measurement. A folder that was converted is measured again: ConversionError if it no
        longer is what its certificate says. A foreign folder is taken as it is and its direction measured:
        ConversionError if only some of it sees both ways. Raises DataError for a folder that is neither.

        `backend` "onnx" or "openvino" opens the file of that kind that `bothways export` wrote, without a torch model,
        and returns what encodes in the same way, see `runners.opened`.
        """
        wish = loading.Wish(dtype, device, attn_implementation, trust_remote_code, revision, model_kwargs)
        if backend is not None:
            return runners.opened(name_or_folder, backend, wish)
        if dtype != "auto":
            return cls(*opened(name_or_folder, wish))
        own = cls(*opened(name_or_folder, replace(wish, dtype=None)))
        choice = hardware.choose_dtype("auto", own.device)
        if choice.value != own.dtype:
            cast = cls(*opened(name_or_folder, wish))
            pair = (encoder.encode(SAMPLE_TEXTS, as_tensor=True) for encoder in (own, cast))
            cosine = float(F.cosine_similarity(*pair).min())
            said = f"cosine to {_name(own.dtype)} {cosine:.5f}, the lowest of {len(SAMPLE_TEXTS)} texts"
            if cosine >= FAITHFUL:
                own, choice = cast, replace(choice, why=f"{choice.why}; {said}")
            else:
                choice = hardware.Precision(own.dtype, f"in {_name(choice.value)} its vectors differ: {said}")
        own.dtype_choice = choice
        return own

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the weights."""
        return next(parameter.dtype for parameter in self.model.parameters() if parameter.is_floating_point())

    @cached_property
    def dim(self) -> int:
        """Length of a vector, measured: some models project their last hidden state."""
        with torch.no_grad():
            return int(self.hidden_states(self.collate(self.tokenise(["a"]))).shape[-1])

    def hidden_states(self, features: Features) -> Float[Tensor, "batch tokens dim"]:
        """The last hidden state of every token."""
        hidden: Tensor = self.model(
            input_ids=features.input_ids, attention_mask=features.attention_mask.long()
        ).last_hidden_state
        return hidden

    def token_states(self, rows: Rows) -> Float[Tensor, "tokens dim"]:
        """The last hidden state of every token of some rows of ids, row after row; packed within `packing`."""
        pad = self.tokenizer.pad_token_id
        return token_states(self.model, rows, 0 if pad is None else pad)

    def embed(self, rows: Sequence[TextIds]) -> Float[Tensor, "texts dim"]:
        """Vectors of tokenised texts, with gradients, in float32; unit length if `settings.normalize`."""
        states = self.token_states([row.ids for row in rows])
        # The last states alone are padded, to be pooled by the one code that pools.
        hidden = nn.utils.rnn.pad_sequence(states.split([len(row) for row in rows]), batch_first=True)
        return self.pooled(hidden, self.collate(rows).pool_mask)

    def packing(self) -> AbstractContextManager[Packing]:
        """Within it `token_states` packs rows, if the model was measured to compute that exactly; it is, once."""
        key = (str(self.model.config._attn_implementation), self.dtype, self.device)
        return self._packing(key)

    @contextmanager
    def _packing(self, key: tuple[str, torch.dtype, torch.device]) -> Iterator[Packing]:
        with packing(self.model, self._packings.get(key)) as found:
            self._packings.setdefault(key, found)
            yield found

    def forward(
        self, texts: Sequence[str] | Features | Mapping[str, Tensor], instruction: Instructions = None
    ) -> Float[Tensor, "texts dim"]:
        """Vectors with gradients, in float32; unit length if `settings.normalize`.

        Takes texts, Features, or a mapping with `input_ids` and `attention_mask` (and `pool_mask`; without it every
        attended token is pooled).
        """
        if isinstance(texts, Features):
            features = texts
        elif isinstance(texts, Mapping):
            mask = texts["attention_mask"].bool()
            features = Features(texts["input_ids"], mask, texts.get("pool_mask", mask).bool())
        else:
            features = self.collate(self.tokenise(texts, instruction))
        if not len(features.input_ids):
            return torch.zeros((0, self.dim), device=self.device)
        return self.pooled(self.hidden_states(features), features.pool_mask)

    @contextmanager
    def _ready(self) -> Iterator[None]:
        training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(training)

    def save_pretrained(self, folder: str | Path, *, head: bool = True, overwrite: bool = False) -> None:
        """Write a stock sentence-transformers folder with bothways.json, complete or not at all.

        `head=False` leaves out an untied language-model head, after which MNTP needs the base again.
        Raises ConfigError if the folder is not empty, unless `overwrite`.
        """
        facts: dict[str, Any] = {}
        state = dict(self.model.state_dict())
        if self.head is not None and (head or self.head.tied):
            facts = {"tied": self.head.tied, "scale": self.head.scale, "softcap": self.head.softcap}
            if not self.head.tied:
                state |= {f"lm_head.{name}": tensor for name, tensor in self.head.state_dict().items()}
        if self.settings.direction == "bidirectional" and not says_bidirectional(self.model.config):
            raise AssertionError("the config of a bidirectional model does not say so")
        with new_folder(Path(folder), overwrite=overwrite, way_out=TAKEN) as partial:
            self.model.save_pretrained(partial, state_dict=state)
            self.tokenizer.save_pretrained(partial)
            artefact.write_engine_keys(partial, self.settings)
            backend, note = stock.needed_backend(self.model, self.settings, self.record.certificate)
            pooling_note = stock.pooling_note(self.settings, self.tokenizer, self._cosine_of_stock_pooling())
            record = replace(self.record, head=facts, notes=tuple(text for text in (note, pooling_note) if text))
            artefact.write_stock_files(partial, self.settings, record, dim=self.dim, attn_implementation=backend)
            if self.adapter is not None:
                self.adapter.write(partial / artefact.ADAPTER)

    def _cosine_of_stock_pooling(self) -> float:
        with torch.no_grad():
            features = self.collate(self.tokenise(SAMPLE_TEXTS))
            hidden = self.hidden_states(features)
            own, plain = (
                pool(hidden, keep, self.settings.pooling) for keep in (features.pool_mask, features.attention_mask)
            )
            return float(F.cosine_similarity(own, plain).mean())

    def to_sentence_transformer(self) -> Any:
        """The same encoder as a `sentence_transformers.SentenceTransformer`, opened from a stock folder.

        Raises ConfigError if sentence-transformers is not installed.
        """
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ConfigError(
                "to_sentence_transformer needs sentence-transformers: pip install bothways[eval]."
            ) from error
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(Path(folder) / "encoder", head=False)
            return SentenceTransformer(str(Path(folder) / "encoder"), device=str(self.device))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
