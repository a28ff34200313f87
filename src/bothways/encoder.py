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

from bothways import hardware, loading, publishing, runners, saving
from bothways.artefact import Adapter, brings_our_module
from bothways.encoding.front import Instructions, TextEncoder
from bothways.errors import ConfigError
from bothways.head import Head
from bothways.opening import opened
from bothways.packing import Packing, Rows, packing, token_states
from bothways.provenance import EncoderSettings, Record
from bothways.runners import Backend, ExportedEncoder
from bothways.saving import SAMPLE_TEXTS
from bothways.text import Features, TextIds

FAITHFUL = 0.99
"""Cosine to the vectors of the checkpoint's own number format below which dtype="auto" keeps that."""


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
        adapter: loading.Names = (),
        base: str | Path | None = None,
        without_mntp: bool = False,
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
        adapter: loading.Names = (),
        base: str | Path | None = None,
        without_mntp: bool = False,
    ) -> Encoder | ExportedEncoder:
        """Load a bothways folder, a sentence-transformers folder of Transformer + Pooling (+ Normalize), or llm2vec's.

        `adapter` names LoRA adapters, in order, that are merged into it; `base` what the folder's own one was trained
        on; `without_mntp` lets one that was trained after MNTP stand on a bare decoder.

        `dtype` None keeps the checkpoint's; "auto" lets the hardware decide, measures what that does to the vectors
        of a few texts, and says both in `dtype_choice`. `attn_implementation` "auto" takes the
        fastest that passes the measurement. A folder that was converted is measured again: ConversionError if it no
        longer is what its certificate says. A foreign folder is taken as it is and its direction measured:
        ConversionError if only some of it sees both ways. Raises DataError for a folder that is none of these, or for
        an adapter that is not whole or does not fit, ConfigError for adapters that would skip the MNTP stage.

        `backend` "onnx" or "openvino" opens the file of that kind that `bothways export` wrote, without a torch model,
        and returns what encodes in the same way, see `runners.opened`.
        """
        wish = loading.Wish(dtype, device, attn_implementation, trust_remote_code, revision, model_kwargs)
        wish = replace(wish, adapters=loading.names_of(adapter), base=base, without_mntp=without_mntp)
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
    def ready(self) -> Iterator[None]:
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
        saving.save(self, Path(folder), head=head, overwrite=overwrite)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        head: bool = True,
    ) -> str:
        """Put the folder that `save_pretrained` writes on the hub; returns the commit's address.

        The repository (and `revision`, a branch) is made if it is not there, `private` or as its owner's settings say.
        What was written is opened and compared first. `token` None: that of `hf auth login` or HF_TOKEN. Raises
        HubError if nobody is logged in, the name cannot be one, or the hub refuses or cannot be reached.
        """
        publishing.check(repo_id, token)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "encoder"
            self.save_pretrained(folder, head=head)
            backend = self.model.config._attn_implementation
            again = Encoder.from_pretrained(folder, device=self.device, attn_implementation=backend)
            saving.require_alike(self.encode(SAMPLE_TEXTS), again.encode(SAMPLE_TEXTS), self.dtype)
            del again
            return publishing.upload(
                folder, repo_id, private=private, token=token, revision=revision, commit_message=commit_message
            )

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
            path = Path(folder) / "encoder"
            self.save_pretrained(path, head=False)
            # The module of a family that needs code is the one that was just written.
            trusted = brings_our_module(path)
            return SentenceTransformer(str(path), device=str(self.device), trust_remote_code=trusted)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
