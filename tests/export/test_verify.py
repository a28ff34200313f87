"""Property: what an engine's vectors are is told, in whatever way they are wrong, and of whatever model."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedConfig,
)

from bothways import Encoder, convert
from bothways.errors import ConfigError, DataError, VerificationError
from bothways.export.engines.stock import StockEngine
from bothways.export.references import other_direction
from bothways.export.verify import Engine, Verdict, verify

Answer = Callable[[Sequence[str]], np.ndarray]
PROMPT = "Find what answers this question: "


class Answering:
    """An engine that is a function."""

    def __init__(self, answer: Answer, max_length: int | None = None, number_format: str | None = "float32") -> None:
        self.name = "an engine"
        self.answer = answer
        self.max_length = max_length
        if number_format is not None:
            self.number_format = number_format

    def embed(self, texts: Sequence[str], /) -> np.ndarray:
        return self.answer(texts)

    def close(self) -> None:
        pass


def changed(encoder: Encoder, **settings: Any) -> Encoder:
    """The same model with other settings."""
    return Encoder(encoder.model, encoder.tokenizer, replace(encoder.settings, **settings), encoder.record)


def cutting(encoder: Encoder) -> Answer:
    """`encode`, which warns of the texts that it cuts."""

    def answer(texts: Sequence[str]) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found: np.ndarray = encoder.encode(texts)
        return found

    return answer


def checked(answer: Answer, folder: Path, **how: Any) -> Verdict:
    engine = Answering(answer, how.pop("max_length", None), how.pop("engine_format", "float32"))
    assert isinstance(engine, Engine)
    return verify(engine, folder, device="cpu", **how)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_llama_folder: Path) -> Path:
    out = tmp_path_factory.mktemp("enc") / "encoder"
    convert(tiny_llama_folder, dtype="float32", device="cpu", prompts={"query": PROMPT}).save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return Encoder.from_pretrained(folder, device="cpu")


@pytest.fixture(scope="module")
def causal(encoder: Encoder, folder: Path) -> Encoder:
    return other_direction(encoder, folder)


def test_right_and_causal_are_told_apart(encoder: Encoder, causal: Encoder, folder: Path) -> None:
    right = checked(encoder.encode, folder)
    assert right.right
    assert right.matches == "bidirectional"
    right.require()
    assert all(case.bidirectional.difference < 1e-6 for case in right.cases)
    wrong = checked(causal.encode, folder)
    assert (wrong.matches, wrong.right) == ("causal", False)
    with pytest.raises(
        VerificationError, match=r"an engine matches the causal reference .*folder's encoder is bidirec"
    ):
        wrong.require()
    assert json.loads(json.dumps(wrong.as_json()))["cases"][0]["name"] == "short texts, alone"


def test_causal_without_padding_alone(encoder: Encoder, causal: Encoder, folder: Path) -> None:
    """As stablelm and nemotron are under sdpa."""
    verdict = checked(lambda texts: (encoder if len(texts) > 1 else causal).encode(texts), folder)
    assert verdict.matches == "neither"
    assert [case.matches for case in verdict.cases] == ["causal", "bidirectional", "causal", "bidirectional"]
    assert "neither reference" in verdict.sentence()
    assert '"short texts, alone"' in verdict.sentence()


@pytest.mark.parametrize("direction", ["bidirectional", "causal"])
@pytest.mark.parametrize(
    ("pooling", "said"),
    [("last", "last-token pooling"), ("cls", "first-token pooling"), ("weighted_mean", "pooling by a weighted mean")],
)
def test_another_pooling_is_named(
    encoder: Encoder, causal: Encoder, folder: Path, direction: str, pooling: str, said: str
) -> None:
    engine = changed(encoder if direction == "bidirectional" else causal, pooling=pooling)
    verdict = checked(engine.encode, folder)
    assert verdict.matches == "neither"
    assert verdict.faults == (
        f"Its vectors are the {direction} ones of {said} over all tokens, "
        "where the folder has mean pooling over all tokens",
    )


def test_a_dropped_prompt_is_named(encoder: Encoder, causal: Encoder, folder: Path) -> None:
    bare = lambda texts: encoder.encode([text.removeprefix(PROMPT) for text in texts])  # noqa: E731
    said = 'The prompt "query" is dropped: these are the vectors of the texts without it'
    dropped = checked(bare, folder)
    assert (dropped.matches, dropped.right) == ("neither", False)
    assert dropped.faults[-1] == said
    assert [case.matches for case in dropped.cases] == [*["bidirectional"] * 3, "neither"]
    # Where the engine is to put it there itself.
    assert checked(encoder.encode_query, folder, prompt="query").right
    assert checked(encoder.encode, folder, prompt="query").faults[-1] == said
    assert checked(causal.encode, folder, prompt="query").faults == (
        "Apart from the prompt they are the causal vectors",
        said,
    )
    with pytest.raises(ConfigError, match=r'no stored prompt "querry"\. Did you mean "query"\?'):
        checked(encoder.encode, folder, prompt="querry")


def test_lengths(encoder: Encoder, folder: Path, tmp_path: Path) -> None:
    raw = changed(encoder, normalize=False)
    verdict = checked(raw.encode, folder)
    assert (verdict.matches, verdict.right) == ("bidirectional", False)
    assert "not of unit length" in verdict.sentence()
    raw.save_pretrained(tmp_path / "raw")
    assert checked(raw.encode, tmp_path / "raw").notes == ()
    scaled = checked(encoder.encode, tmp_path / "raw")
    assert scaled.right
    assert "the lengths of its vectors go from 1 to 1" in scaled.notes[0]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda found: found[:, :9], r"returned vectors of 9 numbers, the folder's have 56: it serves another model"),
        (
            lambda found: found[1:],
            r"array of shape \(0, 56\) for 1 texts in \"short texts, alone\", expected \(1, 56\)",
        ),
        (lambda found: np.where(found == found.max(), np.nan, found), r"NaN or infinity for text 1 of 1 in \"short"),
        (lambda found: found[0], r"array of shape \(56,\)"),
    ],
)
def test_what_cannot_be_compared(
    encoder: Encoder, folder: Path, spoil: Callable[[np.ndarray], np.ndarray], said: str
) -> None:
    with pytest.raises(VerificationError, match=said):
        checked(lambda texts: spoil(encoder.encode(texts)), folder)


def test_number_formats(encoder: Encoder, folder: Path, tmp_path: Path) -> None:
    half = Encoder.from_pretrained(folder, dtype="bfloat16", device="cpu")
    assert checked(half.encode, folder, engine_format="bfloat16").right
    assert checked(half.encode, folder).matches == "neither"
    assert checked(half.encode, folder, tolerance=0.1).right
    half.save_pretrained(tmp_path / "half")
    stock = StockEngine(tmp_path / "half", device="cpu")
    assert stock.number_format == "bfloat16"
    assert verify(stock, tmp_path / "half", device="cpu").right
    with pytest.raises(ConfigError, match=r'number_format="int9" is not known\. Did you mean "int8"\?'):
        checked(encoder.encode, folder, number_format="int9")


def test_texts_that_cannot_tell(encoder: Encoder, folder: Path, tmp_path: Path, tiny_llama_folder: Path) -> None:
    """The first token sees itself alone, whatever the direction: pooled by it, every text is a short one."""
    one = changed(encoder, max_length=1, prompts={})
    one.save_pretrained(tmp_path / "one")
    with pytest.raises(DataError, match=r"the bidirectional and the causal vectors are the same.*Pass longer texts"):
        checked(cutting(one), tmp_path / "one", texts=["a"])
    with pytest.raises(DataError, match=r"no text to compare"):
        checked(encoder.encode, folder, texts=["", " "])
    # Beside others, such a text has no say.
    mixed = checked(encoder.encode, folder, texts=["a", "a longer text with many words"], engine_format="int8")
    assert mixed.right


def test_an_engine_that_reads_less(encoder: Encoder, folder: Path) -> None:
    short = changed(encoder, max_length=24)
    verdict = checked(short.encode, folder, max_length=24)
    assert verdict.right
    assert verdict.notes[0] == "the engine reads 24 tokens of a text, the folder 256"
    assert "were cut" in verdict.notes[1]
    assert checked(cutting(short), folder).matches == "neither"


def test_a_causal_folder(causal: Encoder, encoder: Encoder, tiny_llama_folder: Path, tmp_path: Path) -> None:
    convert(tiny_llama_folder, dtype="float32", device="cpu", direction="causal").save_pretrained(tmp_path / "causal")
    verdict = checked(causal.encode, tmp_path / "causal")
    assert (verdict.matches, verdict.expected, verdict.right) == ("causal", "causal", True)
    wrong = checked(encoder.encode, tmp_path / "causal")
    assert (wrong.matches, wrong.right) == ("bidirectional", False)


def test_the_texts_own_tokens(encoder: Encoder, folder: Path, tmp_path: Path) -> None:
    own = changed(encoder, pool_over="text")
    own.save_pretrained(tmp_path / "own")
    with_prompt = lambda texts: (own.encode_query if texts[0].startswith(PROMPT) else own.encode)(  # noqa: E731
        [text.removeprefix(PROMPT) for text in texts]
    )
    assert checked(with_prompt, tmp_path / "own").right
    assert checked(encoder.encode, tmp_path / "own").faults == (
        "Its vectors are the bidirectional ones of mean pooling over all tokens, "
        "where the folder has mean pooling over the text's own tokens",
    )


def model_folder(config: PreTrainedConfig, tokenizer: Path, out: Path, **settings: Any) -> Encoder:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(out / "base")
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(out / "base")
    encoder = convert(out / "base", dtype="float32", device="cpu", head=False, **settings)
    encoder.save_pretrained(out / "encoder")
    return encoder


SHAPE: dict[str, Any] = {
    "vocab_size": 501,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 56,
    "max_position_embeddings": 256,
    "initializer_range": 0.12,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "sliding_window": 60,
}


def test_beyond_the_window(tiny_llama_folder: Path, tmp_path: Path) -> None:
    encoder = model_folder(MistralConfig(**SHAPE), tiny_llama_folder, tmp_path)
    right = checked(encoder.encode, tmp_path / "encoder")
    assert right.right
    beyond = [case.name for case in right.cases if "beyond" in case.name]
    assert [re.sub(r"\d\d tokens", "N tokens", name) for name in beyond] == [
        "a text of N tokens, beyond the window of 60, alone",
        "a text of N tokens, beyond the window of 60, with short ones",
    ]
    assert all(int(re.search(r"\d+", name)[0]) > 61 for name in beyond)
    # An engine that knows of no window.
    full = convert(tmp_path / "base", dtype="float32", device="cpu", head=False, windows="full")
    verdict = checked(
        full.encode, tmp_path / "encoder", texts=["A text of some words.", "Another one, not much longer."]
    )
    assert verdict.matches == "neither"
    assert verdict.cases[0].matches == "bidirectional"
    assert all(case.matches == "neither" for case in verdict.cases if "beyond" in case.name)
    narrow = changed(encoder, max_length=40)
    narrow.save_pretrained(tmp_path / "narrow")
    notes = checked(narrow.encode, tmp_path / "narrow").notes
    assert notes[-1] == "no text goes beyond the window of 60 tokens, because 40 are read"


def test_the_familys_own_key_ignored(tiny_llama_folder: Path, tmp_path: Path) -> None:
    """Gemma 3's key narrows its windows too: who does not read it has the wide ones of the file, one way."""
    config = Gemma3TextConfig(**SHAPE, head_dim=12, layer_types=["sliding_attention", "full_attention"])
    encoder = model_folder(config, tiny_llama_folder, tmp_path)
    assert encoder.settings.windows == "native"
    assert checked(encoder.encode, tmp_path / "encoder").right
    planted = shutil.copytree(tmp_path / "encoder", tmp_path / "planted")
    (planted / "bothways.json").unlink()
    plain = json.loads((planted / "config.json").read_text())
    (planted / "config.json").write_text(json.dumps({**plain, "use_bidirectional_attention": False}))
    verdict = verify(StockEngine(planted, device="cpu"), tmp_path / "encoder", device="cpu")
    assert verdict.matches == "causal"
    assert max(case.causal.difference for case in verdict.cases) < 1e-5


def test_two_way_recurrence_opened_one_way(tiny_llama_folder: Path, tmp_path: Path) -> None:
    config = MambaConfig(
        vocab_size=501,
        hidden_size=48,
        num_hidden_layers=2,
        state_size=4,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    encoder = model_folder(config, tiny_llama_folder, tmp_path)
    assert checked(encoder.encode, tmp_path / "encoder").right
    assert verify(StockEngine(tmp_path / "encoder", device="cpu"), tmp_path / "encoder", device="cpu").right
    # A folder whose own module gave way to the stock one, which knows nothing of a second direction.
    planted = tmp_path / "planted"
    shutil.copytree(tmp_path / "encoder", planted)
    modules = (planted / "modules.json").read_text()
    (planted / "modules.json").write_text(
        modules.replace("two_way_module.TwoWayTransformer", "sentence_transformers.models.Transformer")
    )
    verdict = verify(StockEngine(planted, device="cpu"), tmp_path / "encoder", device="cpu")
    assert verdict.matches != "bidirectional"
    assert verdict.cases[0].causal.difference < 1e-5
