"""A request's texts, or token ids -> items that are ready for the model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from bothways import text as texts_room
from bothways.encoding import Asked, Overflow
from bothways.encoding.front import TextEncoder
from bothways.encoding.reading import AROUND, Item, Reader, distinct
from bothways.errors import ConfigError, did_you_mean
from bothways.serve.refusal import Refusal, invalid
from bothways.serve.request import EmbeddingRequest, Ids, as_inputs, read_request
from bothways.serve.settings import Serve
from bothways.text import TextIds


@dataclass(frozen=True)
class Ready:
    """One request, ready for the model."""

    request: EmbeddingRequest
    items: list[Item]
    """Distinct texts."""
    places: list[int]
    """Of each input, which item it is."""
    tokens: int
    """Of all inputs: what the model reads of them."""
    overlong: int
    """Inputs that had more tokens than the encoder reads at once."""
    dim: int
    """Numbers of a vector that are wanted."""


class Desk:
    """Reads requests, one after the other: a tokenizer is set to cut texts for the time of one call."""

    def __init__(self, encoder: TextEncoder, settings: Serve, name: str) -> None:
        self.encoder, self.settings, self.name = encoder, settings, name
        self.dim = encoder.dim

    @cached_property
    def vocabulary(self) -> int:
        """One more than the highest id."""
        return max(self.encoder.tokenizer.get_vocab().values()) + 1

    @cached_property
    def special(self) -> frozenset[int]:
        """Ids of special tokens."""
        return frozenset(self.encoder.tokenizer.all_special_ids)

    def read(self, body: bytes) -> Ready:
        """Everything that can be wrong with a request is found here. Raises Refusal."""
        request = read_request(body)
        if request.model is not None and request.model != self.name:
            raise _unknown_model(request.model, self.name)
        if request.dimensions is not None and request.dimensions > self.dim:
            message = f'"dimensions" is {request.dimensions}, but the vectors of {self.name} have {self.dim} numbers.'
            raise invalid(message, "dimensions")
        inputs = as_inputs(request.input, self.settings.max_inputs)
        if isinstance(inputs[0], str):
            items, places, overlong = self._texts([str(text) for text in inputs], request)
        else:
            items, places, overlong = self._ids([list(map(int, ids)) for ids in inputs], request)
        if overlong and self.settings.overflow == "error":
            most = self.encoder.settings.max_length
            message = (
                f'"input[{overlong[0]}]" has more than {most} tokens, the most that {self.name} reads. Shorten it.'
            )
            raise invalid(message, "input", "context_length_exceeded")
        tokens = sum(len(items[place]) for place in places)
        return Ready(request, items, places, tokens, len(overlong), request.dimensions or self.dim)

    def _texts(self, texts: list[str], request: EmbeddingRequest) -> tuple[list[Item], list[int], list[int]]:
        texts, each = self._around(texts, request)
        firsts, places = distinct(texts, each)
        overflow: Overflow = "chunk" if self.settings.overflow == "chunk" else "truncate"
        reader = Reader(
            self.encoder.rows, self.encoder.pieces, self.encoder.settings.max_length, Asked(overflow=overflow)
        )
        try:
            items = reader.items(texts, each, firsts)
        except ConfigError as problem:
            raise invalid(str(problem), request.prompt_field) from None
        cut = {places[first] for first in reader.too_long}
        return items, places, [number for number, place in enumerate(places) if place in cut]

    def _around(self, texts: list[str], request: EmbeddingRequest) -> tuple[list[str], list[AROUND]]:
        settings = self.encoder.settings
        if request.instruction:
            return texts, [texts_room.wrap(settings.instruction_template, request.instruction)] * len(texts)
        if request.input_type:
            # As `encode_query` and `encode_document`: without a stored prompt there is none.
            return texts_room.after_prompt(settings.prompts.get(request.input_type, ""), texts)
        if request.prompt_name:
            if request.prompt_name not in settings.prompts:
                known = did_you_mean(request.prompt_name, settings.prompts) if settings.prompts else "It has none."
                message = f'"prompt_name" is "{request.prompt_name}", but {self.name} has no such prompt. {known}'
                raise invalid(message, "prompt_name")
            return texts_room.after_prompt(settings.prompts[request.prompt_name], texts)
        return texts, [("", "")] * len(texts)

    def _ids(self, inputs: list[Ids], request: EmbeddingRequest) -> tuple[list[Item], list[int], list[int]]:
        if request.prompt_field:
            message = f'"{request.prompt_field}" stands before texts; with token ids, send its tokens among them.'
            raise invalid(message, request.prompt_field)
        for number, ids in enumerate(inputs):
            wrong = next((one for one in ids if not 0 <= one < self.vocabulary), None)
            if wrong is not None:
                shown = str(wrong) if abs(wrong) < 10**12 else "a very large number"
                message = (
                    f'"input[{number}]" has the token id {shown}, but {self.name}\'s end at {self.vocabulary - 1}.'
                )
                raise invalid(message, "input")
        most = self.encoder.settings.max_length
        overlong = [number for number, ids in enumerate(inputs) if len(ids) > most]
        return [self._item(ids, most) for ids in inputs], list(range(len(inputs))), overlong

    def _item(self, ids: Ids, most: int) -> Item:
        if len(ids) > most and self.settings.overflow == "chunk":
            starts = range(0, len(ids), most)
            return Item(tuple(self._row(ids[start : start + most]) for start in starts), tuple(starts))
        return Item((self._row(ids[:most]),))

    def _row(self, ids: Ids) -> TextIds:
        # As tokenizers without offsets have it: the text begins behind the special tokens in front.
        first = next((place for place, one in enumerate(ids) if one not in self.special), 0)
        text_only = self.encoder.settings.pool_over == "text"
        return TextIds(ids, [not text_only or place >= first for place in range(len(ids))])


def _unknown_model(asked: str, name: str) -> Refusal:
    message = f'The model "{asked[:80]}" does not exist here. This server has "{name}".'
    return Refusal(404, message, "model", "model_not_found")
