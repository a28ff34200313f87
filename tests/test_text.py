"""Contract and property: which ids a text gives, and which of its tokens are pooled."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from bothways import text
from bothways.errors import ConfigError, DataError

INSTRUCTION = "Given a question, find the passage"


@pytest.fixture(scope="module")
def tokenizer(tiny_llama_folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_llama_folder)


def one(
    tokenizer: PreTrainedTokenizerBase, body: str, instruction: str | None = None, **changes: object
) -> text.TextIds:
    around = text.wrap(text.TEMPLATES["plain"], instruction) if instruction else ("", "")
    rules = {"max_length": 64, "pool_over": "text", "stand_in": 0, **changes}
    return text.tokenise(tokenizer, [body], [around], **rules)[0]


def test_the_joined_string_is_tokenised_once(tokenizer: PreTrainedTokenizerBase) -> None:
    row = one(tokenizer, "How to open a file", INSTRUCTION)
    assert row.ids == tokenizer(f"{INSTRUCTION} How to open a file")["input_ids"]


def test_text_pooling_leaves_out_bos_and_instruction(tokenizer: PreTrainedTokenizerBase) -> None:
    row = one(tokenizer, "How to open a file", INSTRUCTION)
    kept = [token for token, pooled in zip(row.ids, row.pooled, strict=True) if pooled]
    assert tokenizer.decode(kept).strip() == "How to open a file"
    alone = one(tokenizer, "How to open a file")
    assert alone.pooled == [False] + [True] * (len(alone) - 1)


@settings(max_examples=40, deadline=None)
@given(
    body=st.text(min_size=1, max_size=30), instruction=st.text(st.characters(codec="ascii"), min_size=1, max_size=20)
)
def test_pooled_tokens_cover_the_text_and_start_with_it(
    tokenizer: PreTrainedTokenizerBase, body: str, instruction: str
) -> None:
    before, after = text.wrap(text.TEMPLATES["plain"], instruction)
    row = text.tokenise(tokenizer, [body], [(before, after)], max_length=512, pool_over="text", stand_in=0)[0]
    offsets = tokenizer.backend_tokenizer.encode(before + body).offsets
    for (_, end), pooled in list(zip(offsets, row.pooled, strict=True))[1:]:
        assert pooled == (end > len(before)) or not any(row.pooled[1:])


def test_all_pooling_pools_every_token(tokenizer: PreTrainedTokenizerBase) -> None:
    assert all(one(tokenizer, "some text", INSTRUCTION, pool_over="all").pooled)


def test_an_empty_text_has_its_special_tokens_or_the_stand_in(tokenizer: PreTrainedTokenizerBase) -> None:
    assert one(tokenizer, "").ids == [tokenizer.bos_token_id]
    assert one(tokenizer, "").pooled == [True]
    bare = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    bare.backend_tokenizer.post_processor = None
    assert one(bare, "", stand_in=7) == text.TextIds([7], [True])


def test_a_long_text_is_cut_and_says_so(tokenizer: PreTrainedTokenizerBase) -> None:
    whole, cut = one(tokenizer, "word " * 20), one(tokenizer, "x" * 10_000)
    assert not whole.cut
    assert cut.cut
    assert len(cut) == 64


def test_an_instruction_that_leaves_no_room_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ConfigError, match=r"alone fills max_length=5 tokens.*Shorten the instruction"):
        one(tokenizer, "text", INSTRUCTION, max_length=5, pool_over="all")


@pytest.mark.parametrize(
    ("template", "reason"),
    [("{text}", "exactly once"), ("{text} {instruction}", "before"), ("{instruction} {text} {text}", "exactly once")],
)
def test_templates_are_checked(template: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        text.check_template(template)


def test_named_templates() -> None:
    assert text.wrap(text.check_template("instruct"), " Find it ") == ("Instruct: Find it\nQuery: ", "")
    assert text.wrap(text.check_template("plain"), "Find it") == ("Find it ", "")


def test_a_non_string_is_named() -> None:
    with pytest.raises(DataError, match=r"texts\[1\] is int \(5\), expected str"):
        text.check_texts(["a", 5], "encode")
    with pytest.raises(DataError, match="expected a list of strings, got bytes"):
        text.check_texts(b"abc", "encode")


def test_collate_pads_on_the_right() -> None:
    features = text.collate([text.TextIds([3, 4, 5], [False, True, True]), text.TextIds([6], [True])], pad_id=9)
    assert features.input_ids.tolist() == [[3, 4, 5], [6, 9, 9]]
    assert features.attention_mask.tolist() == [[True, True, True], [True, False, False]]
    assert features.pool_mask.tolist() == [[False, True, True], [True, False, False]]


def test_append_eos_teaches_the_tokenizer_itself(tiny_llama_folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_folder)
    text.append_eos(tokenizer)
    text.append_eos(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    ids = AutoTokenizer.from_pretrained(tmp_path)("some text")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.eos_token_id) == 1
    assert ids[-1] == tokenizer.eos_token_id
    assert one(tokenizer, "x" * 5_000).ids[-1] == tokenizer.eos_token_id


def test_a_pad_token_is_found_without_a_new_row(tiny_untied_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_untied_folder)
    size = len(tokenizer)
    assert text.ensure_pad_token(tokenizer) == "eos"
    assert tokenizer.pad_token == tokenizer.eos_token
    assert len(tokenizer) == size


@pytest.mark.parametrize("folder", ["tiny_llama_folder", "tiny_untied_folder"])
def test_prompts_that_end_in_a_space_are_counted_exactly(folder: str, request: pytest.FixtureRequest) -> None:
    tokenizer = AutoTokenizer.from_pretrained(request.getfixturevalue(folder))
    before = tokenizer("some text")["input_ids"]
    assert not text.ignore_trailing_space(tokenizer, ["Find this:"])
    assert text.ignore_trailing_space(tokenizer, ["Find this: "])
    assert tokenizer("some text")["input_ids"] == before
    prompt, joined = tokenizer("Find this: ")["input_ids"], tokenizer("Find this: some")["input_ids"]
    assert joined[: len(prompt)] == prompt
    assert tokenizer.decode(joined[len(prompt) :]).strip() == "some"
