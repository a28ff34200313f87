"""Words: read off the strings of every kind of vocabulary, whatever its marks, and never inside a character."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bothways.training.words import _byte_alphabet, words_of

TEXT = "Déjà-vu: naïve rockets (x86_64) weren't inspected; Ελληνικά слова हिन्दी 日本語の文 한국어 text"


def words_in(tokenizer: PreTrainedTokenizerBase, text: str) -> list[list[str]]:
    ids = np.array(tokenizer(text, add_special_tokens=False)["input_ids"])
    first = words_of(tokenizer).first_tokens(ids)
    return [tokenizer.convert_ids_to_tokens(ids[first == start].tolist()) for start in np.unique(first)]


def fast(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def byte_level(merged: Sequence[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False, min_frequency=2
    )
    tokenizer.train_from_iterator(merged, trainer)
    return fast(tokenizer, bos_token="<s>")


def sentencepiece(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    learnt = Tokenizer(models.BPE())
    # As in Llama's: the letter that byte-level vocabularies write a space with is a letter here.
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=["\u0120"], show_progress=False)
    learnt.train_from_iterator([text.replace(" ", "▁") for text in texts], trainer)
    model = json.loads(learnt.to_str())["model"]
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    merges = [(left, right) for left, right in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return fast(tokenizer, unk_token="<unk>")


EXPECTED = [
    "Déjà", "-", "vu", ":", " naïve", " rockets", " (", "x86", "_", "64", ")", " weren", "'", "t", " inspected", ";",
    " Ελληνικά", " слова", " हिन्दी", " 日", "本", "語", "の", "文", " 한국어", " text",
]  # fmt: skip


@pytest.mark.parametrize("merges", ["none", "some"])
def test_byte_level_words_are_whole_down_to_the_bytes(real_texts: list[str], merges: str) -> None:
    tokenizer = byte_level(real_texts if merges == "some" else [])
    alphabet = _byte_alphabet()
    found = [bytes(alphabet[letter] for letter in "".join(word)).decode() for word in words_in(tokenizer, TEXT)]
    # Where nothing was learnt a space is a token of its own, and no part of the word behind it.
    assert [word.strip() for word in found if word.strip()] == [word.strip() for word in EXPECTED]
    assert any(word[:1] == " " < word[1:] for word in found) == (merges == "some")


def test_sentencepiece_words_are_whole_with_byte_fallback(real_texts: list[str]) -> None:
    tokenizer = sentencepiece(real_texts)
    found = [tokenizer.convert_tokens_to_string(word).strip() for word in words_in(tokenizer, TEXT)]
    assert any("<0x" in token for token in tokenizer.tokenize(TEXT))
    # The mark of a space is a token of its own before what was never seen.
    assert [word for word in found if word] == [word.strip() for word in EXPECTED]


def test_wordpiece_and_the_first_bpe() -> None:
    pieces = ["[UNK]", "[CLS]", "un", "##aff", "##able", "able", "s", "(", "##s"]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    wordpiece = fast(tokenizer, unk_token="[UNK]", cls_token="[CLS]")
    assert words_in(wordpiece, "unaffable able (ables") == [
        ["un", "##aff", "##able"], ["able"], ["("], ["able", "##s"],
    ]  # fmt: skip
    vocabulary = {piece: i for i, piece in enumerate(["a", "b", "ab", "a</w>", "b</w>", "ab</w>"])}
    first_bpe = Tokenizer(models.BPE(vocabulary, [("a", "b"), ("a", "b</w>")], end_of_word_suffix="</w>"))
    first_bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    assert words_in(fast(first_bpe), "ba ab bab") == [["b", "a</w>"], ["ab</w>"], ["b", "ab</w>"]]


def test_special_tokens_are_in_no_word(tiny_llama_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_folder)
    before = tokenizer.backend_tokenizer.to_str()
    words = words_of(tokenizer)
    inside = int(np.flatnonzero(words.goes_on & words.ends_open & ~words.cut)[0])
    eos = tokenizer.eos_token_id
    assert words.first_tokens(np.array([eos, inside, inside, eos, inside])).tolist() == [0, 1, 1, 3, 4]
    assert tokenizer.backend_tokenizer.to_str() == before


def test_the_embedded_decoders_own_vocabulary(real_texts: list[str]) -> None:
    """No word holds white space but at its start, and no two neighbours could be one."""
    from bothways.loading import EMBEDDED

    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    text = real_texts[3]
    found = [tokenizer.convert_tokens_to_string(word) for word in words_in(tokenizer, text)]
    assert "".join(found).strip() == text.strip()
    for word, after in zip(found, [*found[1:], " "], strict=True):
        assert len(word.split()) <= 1
        assert not (word[-1:].isalnum() and after[:1].isalnum())
