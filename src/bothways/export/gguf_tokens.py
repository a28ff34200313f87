"""A tokenizer as llama.cpp reads it from its file: tokens, merges, and which of its own ways to split a text.

llama.cpp has no tokenizer.json but a list of named pre-tokenizers in its code. One that is not among them is refused:
it would split texts otherwise without a word.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from bothways.errors import ConfigError

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
ENDING = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+"
SPLITS: Mapping[str, str] = {
    CONTRACTIONS + WORDS + r"|\p{N}{1,3}" + ENDING: "dbrx",
    CONTRACTIONS + WORDS + r"|\p{N}" + ENDING: "qwen2",
}
"""Regular expression that cuts a text into words -> llama.cpp's name for it."""
WHOLE_WORDS: Mapping[str, str] = {"dbrx": "llama-bpe"}
"""The same split where a word that is a token needs no merges ("ignore_merges")."""
SPACE = "▁"
WAY_OUT = "Export to onnx or sentence-transformers, which keep the tokenizer as it is."


@dataclass(frozen=True)
class Vocabulary:
    """What the file says of the tokenizer."""

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float]
    """Only of a vocabulary that goes by scores instead of merges."""
    first: int | None
    """The id that every text begins with."""
    last: int | None
    """The id that every text ends with."""
    pad: int | None
    unknown: int | None
    space_prefix: bool

    def write(self, writer: Any) -> None:
        """Adds its keys to a GGUFWriter."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores:
            writer.add_token_scores(self.scores)
            writer.add_add_space_prefix(self.space_prefix)
        else:
            writer.add_token_merges(self.merges)
        writer.add_add_bos_token(self.first is not None)
        writer.add_add_eos_token(self.last is not None)
        for number, add in (
            (self.first, writer.add_bos_token_id),
            (self.last, writer.add_eos_token_id),
            (self.pad, writer.add_pad_token_id),
            (self.unknown, writer.add_unk_token_id),
        ):
            if number is not None:
                add(number)


def vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int) -> Vocabulary:
    """The vocabulary of a model with so many rows of embeddings. Raises ConfigError for what llama.cpp cannot do."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ConfigError(
            f"gguf: {type(tokenizer).__name__} is not a fast tokenizer. Save it in the tokenizer.json format."
        )
    plain = json.loads(backend.to_str())
    model = plain["model"]
    if model["type"] != "BPE":
        raise ConfigError(f"gguf: a tokenizer of the kind {model['type']} is not written for llama.cpp. {WAY_OUT}")
    by_bytes = not model.get("byte_fallback")
    if by_bytes:
        kind, pre, prefix = "gpt2", _pre_tokenizer(plain), False
    else:
        kind, pre, prefix = "llama", "default", _space_prefix(plain)
    odd = {name: model.get(name) for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")}
    for name, value in odd.items():
        if value:
            raise ConfigError(f"gguf: llama.cpp does not know {name}={value!r} of this tokenizer. {WAY_OUT}")
    first, last = _around(tokenizer)
    tokens, types = _tokens(tokenizer, plain, rows, model.get("unk_token"))
    merges = [tuple(merge if isinstance(merge, list) else merge.split(" ", 1)) for merge in model["merges"]]
    unknown = tokenizer.unk_token_id
    return Vocabulary(
        model=kind,
        pre=pre,
        tokens=tokens,
        types=types,
        merges=[" ".join(merge) for merge in merges] if by_bytes else [],
        scores=[] if by_bytes else _scores(tokens, merges),
        first=first,
        last=last,
        pad=tokenizer.pad_token_id,
        unknown=unknown if isinstance(unknown, int) and not by_bytes else None,
        space_prefix=prefix,
    )


def _pre_tokenizer(plain: Mapping[str, Any]) -> str:
    """llama.cpp's name for how a byte-level tokenizer splits a text."""
    for part in _parts(plain.get("normalizer"), "normalizers"):
        # Composed text, which nearly all text is, stays as it is; llama.cpp leaves decomposed text as it is, too.
        if part["type"] != "NFC":
            raise ConfigError(f"gguf: llama.cpp does not know the normalizer {part['type']}. {WAY_OUT}")
    parts = _parts(plain.get("pre_tokenizer"), "pretokenizers")
    kinds = [part["type"] for part in parts]
    shown = json.dumps(parts, ensure_ascii=False)
    if kinds and kinds[-1] == "ByteLevel" and parts[-1]["add_prefix_space"]:
        raise ConfigError(
            "gguf: this tokenizer puts a space before a text (add_prefix_space), which llama.cpp's byte-level "
            f"tokenizer cannot: {shown}. {WAY_OUT}"
        )
    if kinds == ["ByteLevel"] and parts[0]["use_regex"]:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and parts[0]["individual_digits"] and parts[1]["use_regex"]:
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not parts[1]["use_regex"]:
        split = parts[0]
        name = SPLITS.get(split["pattern"].get("Regex", ""))
        if name and split["behavior"] == "Isolated" and not split["invert"]:
            whole = bool(plain["model"].get("ignore_merges"))
            if not whole:
                return name
            if name in WHOLE_WORDS:
                return WHOLE_WORDS[name]
    raise ConfigError(f"gguf: llama.cpp has no name for the way this tokenizer splits a text: {shown}. {WAY_OUT}")


def _space_prefix(plain: Mapping[str, Any]) -> bool:
    """Whether a SentencePiece-like tokenizer puts a space before a text."""
    prefix = False
    for part in _parts(plain.get("normalizer"), "normalizers"):
        if part["type"] == "Prepend" and part["prepend"] == SPACE:
            prefix = True
        elif part["type"] != "Replace" or part["pattern"] != {"String": " "} or part["content"] != SPACE:
            raise ConfigError(f"gguf: llama.cpp does not know the normalizer {json.dumps(part)}. {WAY_OUT}")
    for part in _parts(plain.get("pre_tokenizer"), "pretokenizers"):
        if part["type"] == "Metaspace" and part["replacement"] == SPACE and not part.get("split", True):
            prefix = part["prepend_scheme"] != "never"
        # Gemma's tokenizer names a split by spaces, of which its normalizer left none.
        elif part["type"] != "Split" or part["pattern"] != {"String": " "}:
            raise ConfigError(f"gguf: llama.cpp does not know the pre-tokenizer {json.dumps(part)}. {WAY_OUT}")
    return prefix


def _parts(part: Mapping[str, Any] | None, name: str) -> list[Any]:
    if part is None:
        return []
    return list(part[name]) if part["type"] == "Sequence" else [part]


def _around(tokenizer: PreTrainedTokenizerBase) -> tuple[int | None, int | None]:
    """The ids that the tokenizer puts before and after a text."""
    bare = tokenizer("a", add_special_tokens=False).input_ids
    ids = tokenizer("a").input_ids
    start = next((at for at in range(len(ids) - len(bare) + 1) if ids[at : at + len(bare)] == bare), None)
    before, after = (ids[:start], ids[start + len(bare) :]) if start is not None else (ids, ids)
    if len(before) > 1 or len(after) > 1:
        raise ConfigError(
            f"gguf: llama.cpp puts at most one token before a text and one after it, this tokenizer {before} and "
            f"{after}. {WAY_OUT}"
        )
    return next(iter(before), None), next(iter(after), None)


def _tokens(
    tokenizer: PreTrainedTokenizerBase, plain: Mapping[str, Any], rows: int, unknown: str | None
) -> tuple[list[str], list[int]]:
    """Every row's token and its type; rows that no token belongs to get a name of their own."""
    from gguf import TokenType

    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    added = {entry["id"]: entry for entry in plain["added_tokens"]}
    tokens, types = [], []
    for number in range(rows):
        token = by_id.get(number)
        if token is None:
            kind = TokenType.UNUSED
        elif token == unknown:
            kind = TokenType.UNKNOWN
        elif number in added:
            kind = TokenType.CONTROL if added[number]["special"] else TokenType.USER_DEFINED
        elif plain["model"].get("byte_fallback") and len(token) == 6 and token.startswith("<0x"):
            kind = TokenType.BYTE
        else:
            kind = TokenType.NORMAL
        if kind is TokenType.USER_DEFINED:
            token = str(token).replace(SPACE, " ")
        tokens.append(f"[PAD{number}]" if token is None else token)
        types.append(int(kind))
    return tokens, types


def _scores(tokens: Sequence[str], merges: Sequence[tuple[str, ...]]) -> list[float]:
    """What makes llama.cpp join pieces in the order of the merges: the earlier a token is made, the higher."""
    made: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        made.setdefault(left + right, rank)
    return [-float(made.get(token, len(merges))) for token in tokens]
