"""Texts and instructions -> token ids, and which of those tokens are pooled.

Instruction and text are joined first and tokenised once, because that is what every engine computes; the text's own
tokens are then found by their character offsets.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bothways.errors import ConfigError, DataError

PoolOver = Literal["all", "text"]
TEMPLATES = {"plain": "{instruction} {text}", "instruct": "Instruct: {instruction}\nQuery: {text}"}
"""Named instruction templates: the reference's join, and the one of E5-Mistral and its successors."""


@dataclass(frozen=True)
class TextIds:
    """One tokenised text: its ids, which of them are pooled, and whether it was cut at `max_length`."""

    ids: list[int]
    pooled: list[bool]
    cut: bool = False
    spans: list[tuple[int, int] | None] | None = None
    """Where each token stands in the text, in characters; None for one of what is around it. None: not asked for."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def pool_tensor(self) -> Bool[Tensor, " tokens"]:
        """`pooled`, on the CPU."""
        return torch.tensor(self.pooled, dtype=torch.bool)


@dataclass(frozen=True)
class Features:
    """One right-padded batch. `pool_mask` is a subset of `attention_mask`."""

    input_ids: Int[Tensor, "batch tokens"]
    attention_mask: Bool[Tensor, "batch tokens"]
    pool_mask: Bool[Tensor, "batch tokens"]

    def to(self, device: torch.device | str) -> Features:
        return Features(self.input_ids.to(device), self.attention_mask.to(device), self.pool_mask.to(device))


def check_template(template: str) -> str:
    """The template itself, or the one that goes by that name. Raises ConfigError unless it holds both fields once."""
    template = TEMPLATES.get(template, template)
    if template.count("{text}") != 1 or template.count("{instruction}") != 1:
        known = ", ".join(f'"{name}"' for name in TEMPLATES)
        raise ConfigError(
            f"instruction_template={template!r} must hold {{instruction}} and {{text}} exactly once each. "
            f"Write it out, or use one of the names {known}."
        )
    if template.index("{instruction}") > template.index("{text}"):
        raise ConfigError(f"instruction_template={template!r}: {{instruction}} must stand before {{text}}.")
    return template


def wrap(template: str, instruction: str) -> tuple[str, str]:
    """What the template puts before and after a text for this instruction."""
    before, after = template.split("{text}")
    return before.replace("{instruction}", instruction.strip()), after


def after_prompt(prompt: str, texts: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Texts with a prompt before them, as `tokenise` takes them: the texts, and what stands around each."""
    # A space at the prompt's end goes into the text's first token, or is one of its own there: the same start for
    # every text, as stock code has it, which counts the tokens of the prompt alone.
    before = prompt.rstrip()
    space = prompt[len(before) :]
    return [space + text for text in texts] if space else list(texts), [(before, "")] * len(texts)


def check_texts(texts: Sequence[Any], call: str) -> list[str]:
    """The texts as a list. Raises DataError naming the first one that is not a string."""
    if isinstance(texts, (str, bytes, Mapping)):
        raise DataError(f"{call}: expected a list of strings, got {type(texts).__name__}.")
    checked = list(texts)
    for number, text in enumerate(checked):
        if not isinstance(text, str):
            shown = repr(text)
            shown = shown if len(shown) <= 40 else shown[:37] + "..."
            raise DataError(
                f"{call}: texts[{number}] is {type(text).__name__} ({shown}), expected str. Convert or drop it."
            )
    return checked


def tokenise(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    around: Sequence[tuple[str, str]],
    *,
    max_length: int,
    pool_over: PoolOver,
    stand_in: int,
    with_spans: bool = False,
) -> list[TextIds]:
    """Token ids of `before + text + after` for every text and its pair in `around`, cut at `max_length` tokens.

    `pool_over="all"` pools every token, special ones included. `"text"` pools from the first token that holds a
    character of the text to the end, which leaves out the beginning-of-sequence token and the instruction; a text
    without a character of its own is pooled over all its tokens. A text that gives no token at all becomes the single
    token `stand_in`, so that its vector is finite and the same in every batch. `with_spans` fills `TextIds.spans`.

    Raises ConfigError if an instruction alone fills `max_length`, or if offsets are needed and the tokenizer has none.
    """
    if not texts:
        return []
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        if with_spans:
            raise ConfigError(
                f"Vectors of tokens need the offsets of a fast tokenizer; {type(tokenizer).__name__} has none. "
                'Save the tokenizer in the "tokenizer.json" format.'
            )
        return [_slow(tokenizer, *rest, max_length, pool_over, stand_in) for rest in zip(texts, around, strict=True)]
    joined = [before + text + after for text, (before, after) in zip(texts, around, strict=True)]
    backend.no_padding()
    backend.enable_truncation(max_length=max_length)
    # Offsets take half of the time.
    plain = pool_over == "all" and not with_spans and not any(before for before, _ in around)
    try:
        encodings = (backend.encode_batch_fast if plain else backend.encode_batch)(joined)
    finally:
        backend.no_truncation()
    found = []
    for encoding, text, (before, _) in zip(encodings, texts, around, strict=True):
        ids = encoding.ids or [stand_in]
        cut = len(encoding.overflowing) > 0
        pooled = [True] * len(ids)
        if pool_over == "text" or (before and cut):
            start = _first_of_text(encoding, len(before))
            if start is None and text and before and cut:
                raise ConfigError(
                    f"The instruction {before!r} alone fills max_length={max_length} tokens, so that nothing of the "
                    "text would be read. Shorten the instruction or raise max_length."
                )
            if pool_over == "text" and start is not None:
                pooled = [position >= start for position in range(len(ids))]
        spans = _spans(encoding, len(before), len(text)) if with_spans else None
        found.append(TextIds(ids, pooled, cut, spans))
    return found


def pieces(
    tokenizer: PreTrainedTokenizerBase, text: str, around: tuple[str, str], max_length: int
) -> list[tuple[int, str]]:
    """A text in pieces that have at most `max_length` tokens with what is around them, each with its first character.

    They end where tokens end, and are the text when they are put together. Raises ConfigError for a tokenizer without
    offsets, or if what is around fills `max_length` alone.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ConfigError(
            f'overflow="chunk" needs the offsets of a fast tokenizer; {type(tokenizer).__name__} has none. '
            'Save the tokenizer in the "tokenizer.json" format, or use overflow="truncate".'
        )
    before, after = around
    room = max_length - len(backend.encode(before + after).ids)
    if room < 1:
        raise ConfigError(
            f"The instruction {before!r} alone fills max_length={max_length} tokens. Shorten it or raise max_length."
        )
    starts = [start for start, _ in backend.encode(text, add_special_tokens=False).offsets[room::room]]
    bounds = sorted({0, *starts, len(text)})
    waiting = [(begin, text[begin:end]) for begin, end in itertools.pairwise(bounds)][::-1]
    found = []
    while waiting:
        begin, piece = waiting.pop()
        # Cut out of its text it may have more tokens than it had there.
        if len(piece) > 1 and len(backend.encode(before + piece + after).ids) > max_length:
            half = len(piece) // 2
            waiting += [(begin + half, piece[half:]), (begin, piece[:half])]
            continue
        found.append((begin, piece))
    return found


def _spans(encoding: Any, start: int, length: int) -> list[tuple[int, int] | None]:
    """Of each token in a text of `length` characters that begins at `start`; None where it holds none of them."""
    found: list[tuple[int, int] | None] = []
    for (begin, end), special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True):
        inside = (max(begin - start, 0), min(end - start, length))
        found.append(None if special or inside[0] >= inside[1] else inside)
    return found or [None]


def _first_of_text(encoding: Any, start: int) -> int | None:
    """Position of the first token that holds a character at or after `start`."""
    for position, ((_, end), special) in enumerate(zip(encoding.offsets, encoding.special_tokens_mask, strict=True)):
        if not special and end > start:
            return position
    return None


def _slow(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    around: tuple[str, str],
    max_length: int,
    pool_over: PoolOver,
    stand_in: int,
) -> TextIds:
    before, after = around
    whole = tokenizer(before + text + after)["input_ids"]
    ids = tokenizer(before + text + after, truncation=True, max_length=max_length)["input_ids"] or [stand_in]
    if pool_over == "text" and before:
        raise ConfigError(
            f'pool_over="text" with an instruction needs the offsets of a fast tokenizer; {type(tokenizer).__name__} '
            'has none. Save the tokenizer in the "tokenizer.json" format, or use pool_over="all".'
        )
    first = next((i for i, token in enumerate(ids) if token not in tokenizer.all_special_ids), 0)
    pooled = [pool_over == "all" or position >= first for position in range(len(ids))]
    return TextIds(list(ids), pooled, cut=len(whole) > len(ids))


def collate(rows: Sequence[TextIds], pad_id: int) -> Features:
    """One right-padded batch on the CPU, shape (len(rows), longest row)."""
    longest = max((len(row) for row in rows), default=0)
    input_ids = torch.full((len(rows), longest), pad_id, dtype=torch.int64)
    attention_mask = torch.zeros((len(rows), longest), dtype=torch.bool)
    pool_mask = torch.zeros((len(rows), longest), dtype=torch.bool)
    for number, row in enumerate(rows):
        input_ids[number, : len(row)] = torch.tensor(row.ids, dtype=torch.int64)
        attention_mask[number, : len(row)] = True
        pool_mask[number, : len(row)] = row.pool_tensor
    return Features(input_ids, attention_mask, pool_mask)


def append_eos(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make the tokenizer itself end every text with its end-of-sequence token, so that stock engines do it too.

    Raises ConfigError if there is no such token, or no fast tokenizer to teach it.
    """
    from tokenizers.processors import Sequence as Steps
    from tokenizers.processors import TemplateProcessing

    backend = getattr(tokenizer, "backend_tokenizer", None)
    eos, eos_id = tokenizer.eos_token, tokenizer.eos_token_id
    if backend is None or eos is None or eos_id is None:
        raise ConfigError(
            f"append_eos=True: {type(tokenizer).__name__} has no {'fast backend' if eos else 'end-of-sequence token'}. "
            "Use append_eos=False."
        )
    probe = tokenizer("a")["input_ids"]
    if probe and probe[-1] == eos_id:
        return
    ending = TemplateProcessing(single=f"$A {eos}", pair=f"$A $B {eos}", special_tokens=[(eos, eos_id)])
    backend.post_processor = ending if backend.post_processor is None else Steps([backend.post_processor, ending])


def ensure_pad_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """Give the tokenizer a pad token it already knows: its own, else eos, else unk. Returns which one, for the record.

    No embedding row is added: padding is masked, so any id will do. Raises ConfigError if there is none of the three.
    """
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is not None:
        return "own"
    for name in ("eos", "unk"):
        token = getattr(tokenizer, f"{name}_token")
        if token is not None:
            tokenizer.pad_token = token
            return name
    raise ConfigError(
        f"{type(tokenizer).__name__} has no pad, eos or unk token. Set tokenizer.pad_token to any known token."
    )


def ignore_trailing_space(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> bool:
    """Let the tokenizer drop white space at the end where that makes a prompt's token count exact; whether it did.

    sentence-transformers finds the text behind a prompt by counting the tokens of the prompt alone. A prompt that ends
    in a space counts one token too many wherever that space belongs to the text's first token once they are joined.
    """
    from tokenizers.normalizers import Sequence as Steps
    from tokenizers.normalizers import Strip

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or all(counts_exactly(tokenizer, prompt) for prompt in prompts):
        return False
    strip = Strip(left=False, right=True)
    before = backend.normalizer
    backend.normalizer = strip if before is None else Steps([strip, before])
    if all(counts_exactly(tokenizer, prompt) for prompt in prompts):
        return True
    backend.normalizer = before
    return False


def counts_exactly(tokenizer: PreTrainedTokenizerBase, prompt: str) -> bool:
    """Whether a prompt alone has as many tokens as in front of a text, to which the space between them belongs."""
    alone = tokenizer.backend_tokenizer.encode(prompt)
    ids = alone.ids[:-1] if alone.ids and alone.ids[-1] in tokenizer.all_special_ids else alone.ids
    joined = tokenizer.backend_tokenizer.encode(prompt + "text")
    return _first_of_text(joined, len(prompt.rstrip())) == len(ids)
