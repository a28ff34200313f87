"""Where words begin and end, read off the strings of a vocabulary: what whole-word masking has to know."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

SPACE_MARK = "\u2581"
"""SentencePiece's space."""
BYTE_SPACE = "\u0120"
"""The space of byte-level vocabularies: byte 0x20 in their alphabet."""
INSIDE = "##"
"""WordPiece's mark of a token that continues a word; there, what has none begins one."""
ENDING = "</w>"
"""The mark of the first BPE vocabularies (openai-gpt) on the last token of a word."""
UNSPACED = (
    (0x0E00, 0x0FFF),  # Thai, Lao, Tibetan
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x312F),  # CJK radicals, kana, bopomofo
    (0x31A0, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
"""Scripts that put no space between words. Their tokens are words of their own, or a sentence would be one word."""


@dataclass(frozen=True)
class Words:
    """Three facts about every id of a vocabulary, from which the words of any row follow."""

    goes_on: NDArray[np.bool_]
    """It begins with a letter, a digit or a mark, with no space before: a token that ended so is of the same word."""
    ends_open: NDArray[np.bool_]
    """It ends with a letter, a digit or a mark, with no space after."""
    cut: NDArray[np.bool_]
    """It begins in the middle of a character, which the token before it began."""

    def first_tokens(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """For each token of a row the position at which its word begins."""
        begins = np.ones(len(ids), dtype=bool)
        after = ids[1:]
        begins[1:] = ~(self.cut[after] | (self.goes_on[after] & self.ends_open[ids[:-1]]))
        return np.maximum.accumulate(np.where(begins, np.arange(len(ids)), 0))


def words_of(tokenizer: PreTrainedTokenizerBase) -> Words:
    """The words of a tokenizer's vocabulary; special tokens neither go on with one nor let one go on.

    Found from the strings alone: spaces are written as themselves, by a mark (SentencePiece, byte-level BPE), or by
    marks on the tokens inside or at the end of a word (WordPiece, openai-gpt). Bytes that are a part of a character
    count as what is known of it.
    """
    vocabulary = tokenizer.get_vocab()
    special = set(tokenizer.all_special_ids)
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    spell = _spelling({token for token in vocabulary if token not in added})
    facts = np.zeros((3, max(vocabulary.values()) + 1), dtype=bool)
    for token, number in vocabulary.items():
        if number not in special:
            text = token.encode() if token in added else spell(token)
            facts[:, number] = _goes_on(text), _goes_on(text, at_end=True), text[:1] != b"" and _is_inner(text[0])
    return Words(goes_on=facts[0], ends_open=facts[1], cut=facts[2])


class _Spelling:
    """Token -> its bytes, with spaces as spaces."""

    def __init__(self, mark: str, alphabet: Mapping[str, int]) -> None:
        self.mark, self.alphabet = mark, alphabet

    def __call__(self, token: str) -> bytes:
        if self.mark == BYTE_SPACE and all(letter in self.alphabet for letter in token):
            return bytes(self.alphabet[letter] for letter in token)
        if self.mark == SPACE_MARK:
            if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
                return bytes([int(token[3:5], 16)])
            return token.replace(SPACE_MARK, " ").encode()
        if self.mark == INSIDE:
            return (token[2:] if token.startswith(INSIDE) else " " + token).encode()
        if self.mark == ENDING:
            return (token.removesuffix(ENDING) + (" " if token.endswith(ENDING) else "")).encode()
        return token.encode()


def _spelling(tokens: Collection[str]) -> _Spelling:
    """How a vocabulary writes spaces: the way that most of its tokens show."""
    alphabet = _byte_alphabet()
    # A vocabulary of bytes alone has no token that begins with a space and goes on.
    counts = {BYTE_SPACE: int(alphabet.keys() <= set(tokens)), SPACE_MARK: 0, INSIDE: 0, ENDING: 0}
    for token in tokens:
        for mark in (BYTE_SPACE, SPACE_MARK, INSIDE):
            # The mark alone is a token of any vocabulary that has seen the letter.
            counts[mark] += len(token) > len(mark) and token.startswith(mark)
        counts[ENDING] += len(token) > len(ENDING) and token.endswith(ENDING)
    mark = max(counts, key=lambda name: counts[name])
    return _Spelling(mark if counts[mark] else "", alphabet)


def _byte_alphabet() -> dict[str, int]:
    """Character -> byte, as byte-level BPE writes bytes: printable ones as themselves, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def _goes_on(text: bytes, *, at_end: bool = False) -> bool:
    """Whether a token's first (or last) character is one that words are made of."""
    if not text:
        return False
    starts = [place for place, byte in enumerate(text) if not _is_inner(byte)]
    if not starts:
        # Only the middle of a character: what is cut into so many tokens is a rare letter more often than not.
        return True
    if not at_end:
        return starts[0] > 0 or _in_word(text[: starts[1]] if len(starts) > 1 else text)
    return _in_word(text[starts[-1] :])


def _in_word(character: bytes) -> bool:
    code = ord(_completed(character))
    if any(low <= code <= high for low, high in UNSPACED):
        return False
    return unicodedata.category(chr(code))[0] in "LNM"


def _completed(character: bytes) -> str:
    """The character, or where its last bytes are in another token, one that begins so."""
    lead = character[0]
    length = 1 + (lead >= 0xC0) + (lead >= 0xE0) + (lead >= 0xF0)
    # A second byte that leads to letters in every row that has some: Devanagari, Latin, Han, Hangul.
    second = bytes([0xA4 if lead == 0xE0 else 0x8D if lead == 0xED else 0xBA])
    whole = character if len(character) > 1 else character + second
    return (whole + b"\xba" * max(0, length - len(whole)))[:length].decode(errors="replace")[0]


def _is_inner(byte: int) -> bool:
    """Whether a byte of UTF-8 goes on with a character."""
    return 0x80 <= byte < 0xC0
