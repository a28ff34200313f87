"""Encoder: a bidirectional decoder, its tokenizer and its pooling. The only class a user must meet."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bothways import artefact, hardware, loading, stock
from bothways import text as texts_room
from bothways.artefact import Adapter
from bothways.bidirectional.attention import says_bidirectional
from bothways.encoding import Ask, Asked, flow
from bothways.errors import ConfigError
from bothways.folders import new_folder
from bothways.head import Head
from bothways.opening import opened
from bothways.packing import Packing, Rows, packing, token_states
from bothways.pooling import pool
from bothways.provenance import EncoderSettings, Record
from bothways.text import Features, TextIds

Instructions = str | Sequence[str | None] | None
TAKEN = "Choose another folder, or pass overwrite=True."
FAITHFUL = 0.99
"""Cosine to the vectors of the checkpoint's own number format below which dtype="auto" keeps that."""
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
        self.dtype_choice: hardware.Precision | None = None
        """What dtype="auto" chose, and why."""
        self._packings: dict[tuple[str, torch.dtype, torch.device], Packing] = {}
        """What `packing` has measured, by attention implementation, number format and device."""

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
        adapter: loading.Names = (),
        base: str | Path | None = None,
        without_mntp: bool = False,
    ) -> Encoder:
        """Load a bothways folder, a sentence-transformers folder of Transformer + Pooling (+ Normalize), or llm2vec's.

        `adapter` names LoRA adapters, in order, that are merged into it; `base` what the folder's own one was trained
        on; `without_mntp` lets one that was trained after MNTP stand on a bare decoder.

        `dtype` None keeps the checkpoint's; "auto" lets the hardware decide, measures what that does to the vectors
        of a few texts, and says both in `dtype_choice`. `attn_implementation` "auto" takes the
        fastest that passes the measurement. A folder that was converted is measured again: ConversionError if it no
        longer is what its certificate says. A foreign folder is taken as it is and its direction measured:
        ConversionError if only some of it sees both ways. Raises DataError for a folder that is none of these, or an
        adapter that is not whole or does not fit, ConfigError for adapters that would skip the MNTP stage.
        """
        wish = loading.Wish(dtype, device, attn_implementation, trust_remote_code, revision, model_kwargs)
        wish = replace(wish, adapters=loading.names_of(adapter), base=base, without_mntp=without_mntp)
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

    def tokenise(self, texts: Sequence[str], instruction: Instructions = None) -> list[TextIds]:
        """Ids and pooled tokens of each text, at most `settings.max_length` of them.

        `instruction` is one for all texts, or one (or None) per text; it is put before the text by
        `settings.instruction_template`. Raises DataError for a text that is no string.
        """
        checked = texts_room.check_texts(texts, "tokenise")
        return self.rows(checked, self._around(instruction, len(checked)))

    def _around(self, instruction: Instructions, count: int) -> list[tuple[str, str]]:
        return texts_room.around_each(self.settings.instruction_template, instruction, count)

    def rows(
        self, texts: Sequence[str], around: Sequence[tuple[str, str]], *, with_spans: bool = False
    ) -> list[TextIds]:
        """Ids and pooled tokens of texts with what stands before and after each, see `text.tokenise`."""
        tokenizer = self.tokenizer
        texts, around = texts_room.framed(self.settings.text_template, texts, around)
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
            with_spans=with_spans,
        )

    def pieces(self, text: str, around: tuple[str, str], *, with_spans: bool = False) -> list[tuple[int, TextIds]]:
        """A text in pieces of at most `settings.max_length` tokens: the first character of each, and its ids."""
        [bare], [framed] = texts_room.framed(self.settings.text_template, [text], [around])
        cut = texts_room.pieces(self.tokenizer, bare, framed, self.settings.max_length)
        starts, parts = zip(*cut, strict=True)
        return list(zip(starts, self.rows(parts, [around] * len(parts), with_spans=with_spans), strict=True))

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

    def pooled(
        self, hidden: Float[Tensor, "batch tokens dim"], pool_mask: Bool[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch dim"]:
        """One vector per row over the tokens of the mask, float32; unit length if `settings.normalize`."""
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
        return self.pooled(self.hidden_states(features), features.pool_mask)

    def encode(
        self,
        texts: str | Sequence[str],
        *,
        instruction: Instructions = None,
        **ask: Unpack[Ask],
    ) -> Any:
        """Vectors of texts: float32, shape (dim,) for one string, (n, dim) for a list, (0, dim) for an empty one.

        `instruction` is one for all texts or one (or None) for each. Further:

        - `tokens_per_batch`: tokens that go through the model at once; None: what is fast on the device;
        - `truncate_dim`: only so many of the first numbers, of unit length again (Matryoshka);
        - `precision`: float32, float16, int8, uint8, binary or ubinary, see `precision.quantise`;
        - `output`: "text", or "token" for a list of `TokenVectors` (ids, spans in the text, vectors) instead;
        - `overflow`: a text longer than `settings.max_length` tokens is cut at its end ("truncate", the default),
          computed in pieces of that length and pooled over all of them ("chunk"), each with a warning that counts
          such texts, or refused ("error", DataError);
        - `as_tensor`: a tensor on the encoder's device instead of a numpy array;
        - `show_progress`: a bar on stderr.

        The empty text has the vector of its special tokens. Equal texts are computed once. Neither the order of texts
        nor what is computed together changes a vector beyond rounding. Raises DataError naming the first item that is
        no string, ConfigError for what cannot be asked, or an instruction that leaves no room.
        """
        asked = Asked.of("encode", ask)
        checked = texts_room.check_texts([texts] if isinstance(texts, str) else texts, "encode")
        return self._encode(texts, checked, self._around(instruction, len(checked)), asked)

    def encode_query(self, texts: str | Sequence[str], **ask: Unpack[Ask]) -> Any:
        """`encode` with the stored prompt "query" in front, if there is one."""
        return self._encode_prompted("query", texts, ask)

    def encode_document(self, texts: str | Sequence[str], **ask: Unpack[Ask]) -> Any:
        """`encode` with the stored prompt "document" in front, if there is one."""
        return self._encode_prompted("document", texts, ask)

    def _encode_prompted(self, name: str, texts: str | Sequence[str], ask: Mapping[str, Any]) -> Any:
        call = f"encode_{name}"
        asked = Asked.of(call, ask)
        checked = texts_room.check_texts([texts] if isinstance(texts, str) else texts, call)
        after, around = texts_room.after_prompt(self.settings.prompts.get(name, ""), checked)
        return self._encode(texts, after, around, asked)

    def _encode(
        self,
        given: str | Sequence[str],
        texts: Sequence[str],
        around: Sequence[tuple[str, str]],
        asked: Asked,
    ) -> Any:
        training = self.training
        self.eval()
        try:
            found = flow.encode(self, texts, around, asked)
        finally:
            self.train(training)
        return found[0] if isinstance(given, str) else found

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
