"""The body of a request for vectors: its fields, and what is wrong with them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bothways.errors import did_you_mean
from bothways.serve.refusal import Refusal, invalid

INPUT = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}},
        {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}},
        {"type": "array", "minItems": 1, "items": {"type": "array", "minItems": 1, "items": {"type": "integer"}}},
    ]
}
Ids = list[int]
MOST_CHARACTERS = 8192
"""Of what is put before each of many texts."""


class EmbeddingRequest(BaseModel):
    """As OpenAI has it, and what stands before the texts.

    A field that is not known is refused: a misspelt "instruction" that is ignored gives other vectors, silently.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    input: Annotated[
        Any, Field(json_schema_extra=INPUT, description="Texts, or token ids, which are used as they are.")
    ]
    model: str | None = Field(None, description="The served name.")
    encoding_format: Literal["float", "base64"] | None = Field(None, description="base64: of little-endian float32.")
    dimensions: int | None = Field(None, ge=1, description="So many of the first numbers, of unit length again.")
    user: str | None = Field(None, description="Accepted, and not used.")
    instruction: str | None = Field(
        None, max_length=MOST_CHARACTERS, description="Put before every text by the encoder's template."
    )
    input_type: Literal["query", "document"] | None = Field(None, description="The stored prompt for these, if any.")
    prompt_name: str | None = Field(None, max_length=80, description="The stored prompt of that name.")

    @property
    def prompt_field(self) -> str | None:
        """The field that says what stands before the texts."""
        return next((name for name in ("instruction", "input_type", "prompt_name") if getattr(self, name)), None)


def read_request(body: bytes) -> EmbeddingRequest:
    """The request in a body. Raises Refusal for what is not one."""
    try:
        request = EmbeddingRequest.model_validate_json(body)
    except ValidationError as problem:
        raise _refusal(problem.errors(include_url=False, include_input=False)[0]) from None
    named = [name for name in ("instruction", "input_type", "prompt_name") if getattr(request, name)]
    if len(named) > 1:
        raise invalid(f'"{named[0]}" and "{named[1]}" both say what stands before a text. Send one of them.', named[1])
    return request


def _refusal(error: Any) -> Refusal:
    place = [str(step) for step in error["loc"]]
    param = place[0] if place else None
    if error["type"] == "json_invalid":
        return invalid(f"The body is not valid JSON: {error['ctx']['error']}.", code="invalid_json")
    if error["type"] == "extra_forbidden":
        near = did_you_mean(place[0][:80], EmbeddingRequest.model_fields)
        return invalid(f'Unknown field "{place[0][:80]}". {near}', param[:80] if param else None, "unknown_field")
    if error["type"] == "missing":
        return invalid(f'"{place[0]}" is missing.', param, "missing_field")
    if not place:
        return invalid("The body is not a JSON object.", code="invalid_json")
    return invalid(f'"{".".join(place)}": {error["msg"][0].lower()}{error["msg"][1:]}.', param)


def as_inputs(given: Any, most: int) -> list[str] | list[Ids]:
    """The texts of a request, or the ids of each. Raises Refusal for anything else, and for more than `most`."""
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, list):
        raise invalid(f'"input" is {_named(given)}, expected a string, or a list of strings or token ids.', "input")
    if not given:
        raise invalid('"input" is an empty list, expected at least one text.', "input")
    if _is_id(given[0]):
        _check_ids(given, "input")
        return [given]
    if len(given) > most:
        raise invalid(f'"input" has {len(given):,} texts, at most {most:,} are allowed.', "input", "too_many_inputs")
    if isinstance(given[0], list):
        for number, ids in enumerate(given):
            if not isinstance(ids, list):
                raise invalid(f'"input[{number}]" is {_named(ids)}, but the first is a list of token ids.', "input")
            _check_ids(ids, f"input[{number}]")
        return given
    for number, text in enumerate(given):
        if not isinstance(text, str):
            raise invalid(f'"input[{number}]" is {_named(text)}, expected a string.', "input")
        if not text:
            raise invalid(f'"input[{number}]" is an empty string, which has no vector. Leave it out.', "input")
    return given


def _check_ids(ids: list[Any], where: str) -> None:
    if not ids:
        raise invalid(f'"{where}" is an empty list, expected token ids.', "input")
    for number, one in enumerate(ids):
        if not _is_id(one):
            raise invalid(f'"{where}[{number}]" is {_named(one)}, expected a token id.', "input")


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _named(value: Any) -> str:
    """What JSON calls it."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else "a boolean"
    kinds = {str: "a string", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return kinds.get(type(value), type(value).__name__)
