"""What encoders have in common, whatever computes the states of their tokens: texts in, vectors out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Unpack

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from bothways import text as texts_room
from bothways.encoding import flow
from bothways.encoding.asked import Ask, Asked
from bothways.packing import Packing, Rows
from bothways.pooling import pool
from bothways.provenance import EncoderSettings, Record
from bothways.text import Features, TextIds

Instructions = str | Sequence[str | None] | None


class TextEncoder:
    """Texts -> vectors, by a tokenizer, settings, and states of tokens that a subclass computes.

    A subclass has `device`, `dim`, `packing` and `token_states`, see `flow.Computes`.
    """

    tokenizer: PreTrainedTokenizerBase
    settings: EncoderSettings
    record: Record

    @property
    def device(self) -> torch.device:
        """Where batches and vectors are."""
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        """The number format that vectors are computed in."""
        raise NotImplementedError

    @property
    def dim(self) -> int:
        """Length of a vector."""
        raise NotImplementedError

    def packing(self) -> AbstractContextManager[Packing]:
        """A context that says whether `token_states` packs rows within it."""
        raise NotImplementedError

    def token_states(self, rows: Rows) -> Float[Tensor, "tokens dim"]:
        """The last hidden state of every token of some rows of ids, row after row."""
        raise NotImplementedError

    def ready(self) -> AbstractContextManager[None]:
        """Within it the states are those of use, not of training."""
        return nullcontext()

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

    def pooled(
        self, hidden: Float[Tensor, "batch tokens dim"], pool_mask: Bool[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch dim"]:
        """One vector per row over the tokens of the mask, float32; unit length if `settings.normalize`."""
        vectors = pool(hidden, pool_mask, self.settings.pooling)
        return F.normalize(vectors, dim=-1) if self.settings.normalize else vectors

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
        with self.ready():
            found = flow.encode(self, texts, around, asked)
        return found[0] if isinstance(given, str) else found
