"""Encoder: a bidirectional decoder, its tokenizer and its pooling. The only class a user must meet."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bothways import artefact, loading, stock
from bothways import text as texts_room
from bothways.artefact import Adapter
from bothways.bidirectional.attention import says_bidirectional
from bothways.errors import ConfigError, DataError
from bothways.folders import new_folder
from bothways.head import Head
from bothways.opening import opened
from bothways.packing import Rows, token_states
from bothways.pooling import pool
from bothways.provenance import EncoderSettings, Record
from bothways.text import Features, TextIds

Instructions = str | Sequence[str | None] | None
TAKEN = "Choose another folder, or pass overwrite=True."
SAMPLE_TEXTS = ("How do I open a compressed file?", "The signature of the certificate is invalid.", "A short text")


class Encoder(nn.Module):
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

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path,
        *,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> Encoder:
        """Load a bothways folder, or a sentence-transformers folder of Transformer + Pooling (+ Normalize).

        `dtype` None keeps the checkpoint's, "auto" lets the hardware decide; `attn_implementation` "auto" takes the
        fastest that passes the measurement. A folder that was converted is measured again: ConversionError if it no
        longer is what its certificate says. A foreign folder is taken as it is and its direction measured:
        ConversionError if only some of it sees both ways. Raises DataError for a folder that is neither.
        """
        wish = loading.Wish(dtype, device, attn_implementation, trust_remote_code, revision, model_kwargs)
        return cls(*opened(name_or_folder, wish))

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

    def tokenise(self, texts: Sequence[str], instruction: Instructions = None) -> list[TextIds]:
        """Ids and pooled tokens of each text, at most `settings.max_length` of them.

        `instruction` is one for all texts, or one (or None) per text; it is put before the text by
        `settings.instruction_template`. Raises DataError for a text that is no string.
        """
        checked = texts_room.check_texts(texts, "tokenise")
        template = self.settings.instruction_template
        return self._tokenise(
            checked, [texts_room.wrap(template, i) if i else ("", "") for i in _each(instruction, len(checked))]
        )

    def _tokenise(self, texts: Sequence[str], around: Sequence[tuple[str, str]]) -> list[TextIds]:
        tokenizer = self.tokenizer
        stand_in = next(
            i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) if i is not None
        )
        return texts_room.tokenise(
            tokenizer,
            texts,
            around,
            max_length=self.settings.max_length,
            pool_over=self.settings.pool_over,
            stand_in=stand_in,
        )

    def collate(self, rows: Sequence[TextIds]) -> Features:
        """One right-padded batch on the encoder's device."""
        pad = self.tokenizer.pad_token_id
        return texts_room.collate(rows, 0 if pad is None else pad).to(self.device)

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
        return self._pooled(hidden, self.collate(rows).pool_mask)

    def _pooled(self, hidden: Tensor, pool_mask: Tensor) -> Tensor:
        vectors = pool(hidden, pool_mask, self.settings.pooling)
        return F.normalize(vectors, dim=-1) if self.settings.normalize else vectors

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
        return self._pooled(self.hidden_states(features), features.pool_mask)

    def encode(
        self,
        texts: str | Sequence[str],
        *,
        instruction: Instructions = None,
        batch_size: int = 32,
        show_progress: bool = False,
    ) -> NDArray[np.float32]:
        """Vectors of texts: float32, shape (dim,) for one string, (n, dim) for a list, (0, dim) for an empty one.

        A text longer than `settings.max_length` tokens is cut at its end, with a warning that counts them. The empty
        text has the vector of its special tokens. Neither batch size nor order changes a vector beyond rounding.
        Raises DataError naming the first item that is no string, ConfigError for an instruction that leaves no room.
        """
        if isinstance(texts, str):
            return self.encode(
                [texts], instruction=instruction, batch_size=batch_size, show_progress=show_progress
            ).reshape(self.dim)
        checked = texts_room.check_texts(texts, "encode")
        return self._encode(self.tokenise(checked, instruction), batch_size, show_progress)

    def encode_query(
        self, texts: str | Sequence[str], *, batch_size: int = 32, show_progress: bool = False
    ) -> NDArray[np.float32]:
        """`encode` with the stored prompt "query" in front, if there is one."""
        return self._encode_prompted("query", texts, batch_size, show_progress)

    def encode_document(
        self, texts: str | Sequence[str], *, batch_size: int = 32, show_progress: bool = False
    ) -> NDArray[np.float32]:
        """`encode` with the stored prompt "document" in front, if there is one."""
        return self._encode_prompted("document", texts, batch_size, show_progress)

    def _encode_prompted(
        self, name: str, texts: str | Sequence[str], batch_size: int, show_progress: bool
    ) -> NDArray[np.float32]:
        checked = texts_room.check_texts([texts] if isinstance(texts, str) else texts, f"encode_{name}")
        prompt = self.settings.prompts.get(name, "")
        # A space at the prompt's end goes into the text's first token, or is one of its own there: the same start for
        # every text, as stock code has it, which counts the tokens of the prompt alone.
        before = prompt.rstrip()
        spaced = [prompt[len(before) :] + text for text in checked]
        vectors = self._encode(self._tokenise(spaced, [(before, "")] * len(checked)), batch_size, show_progress)
        return vectors.reshape(self.dim) if isinstance(texts, str) else vectors

    @torch.no_grad()
    def _encode(self, rows: list[TextIds], batch_size: int, show_progress: bool) -> NDArray[np.float32]:
        if batch_size < 1:
            raise ConfigError(f"encode: batch_size={batch_size}, expected at least 1.")
        cut = sum(row.cut for row in rows)
        if cut:
            warnings.warn(
                f"{cut} of {len(rows)} texts have more than max_length={self.settings.max_length} tokens and were cut.",
                stacklevel=3,
            )
        vectors = np.zeros((len(rows), self.dim), dtype=np.float32)
        order = sorted(range(len(rows)), key=lambda number: -len(rows[number]))
        training = self.training
        self.eval()
        try:
            starts = range(0, len(order), batch_size)
            for start in _progress(starts, "encode") if show_progress else starts:
                batch = order[start : start + batch_size]
                vectors[batch] = self(self.collate([rows[number] for number in batch])).cpu().numpy()
        finally:
            self.train(training)
        return vectors

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


def _each(instruction: Instructions, count: int) -> list[str | None]:
    if instruction is None or isinstance(instruction, str):
        return [instruction] * count
    each = list(instruction)
    if len(each) != count:
        raise DataError(f"{len(each)} instructions for {count} texts. Pass one for all, or one per text.")
    return each


def _progress(steps: Sequence[int], label: str) -> Any:
    from rich.console import Console
    from rich.progress import track

    return track(steps, description=label, console=Console(stderr=True), transient=True)
