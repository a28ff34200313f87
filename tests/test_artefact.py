"""Contract and parity: the folder is complete, opens in stock code as the same encoder, and never comes back causal."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from transformers import StableLmConfig, StableLmForCausalLM

from bothways import Encoder, convert
from bothways.errors import BothwaysError, ConfigError, ConversionError, DataError

TEXTS = [
    "How do I open a compressed file?",
    "short",
    "The zipfile module reads and writes archives of many files. " * 3,
]
PROMPTS = {"query": "Find the passage that answers this: ", "document": "Passage: "}
STOCK = """
import sys
sys.modules["bothways"] = None
import json
import numpy as np
from sentence_transformers import SentenceTransformer
for line in sys.stdin:
    folder, texts, prompt, out = json.loads(line)
    model = SentenceTransformer(folder, device="cpu")
    padded = model.encode(texts, prompt_name=prompt, batch_size=8)
    single = np.stack([model.encode([text], prompt_name=prompt)[0] for text in texts])
    np.savez(out, padded=padded, single=single)
    print(out, flush=True)
"""
Stock = Callable[[Path, str | None], tuple[np.ndarray, np.ndarray]]


@pytest.fixture(scope="module")
def stock_vectors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stock]:
    """What plain sentence-transformers makes of a folder, in a process that cannot import bothways."""
    out = str(tmp_path_factory.mktemp("stock") / "vectors.npz")
    with subprocess.Popen(
        [sys.executable, "-c", STOCK],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        asked, answers = child.stdin, child.stdout

        def vectors(folder: Path, prompt: str | None) -> tuple[np.ndarray, np.ndarray]:
            asked.write(json.dumps([str(folder), TEXTS, prompt, out]) + "\n")
            asked.flush()
            assert answers.readline().strip() == out
            arrays = np.load(out)
            return arrays["padded"], arrays["single"]

        yield vectors
        asked.close()


@pytest.mark.parametrize(
    ("base", "changes", "prompt"),
    [
        ("tiny_llama_folder", {"pool_over": "all"}, None),
        ("tiny_llama_folder", {"pool_over": "all", "prompts": PROMPTS, "pooling": "last"}, "query"),
        ("tiny_llama_folder", {"pool_over": "text", "prompts": PROMPTS}, "query"),
        ("tiny_untied_folder", {"pool_over": "text", "prompts": PROMPTS, "append_eos": True}, "query"),
    ],
)
def test_stock_sentence_transformers_gives_the_same_vectors(
    base: str,
    changes: dict,
    prompt: str | None,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    stock_vectors: Stock,
) -> None:
    encoder = convert(request.getfixturevalue(base), **changes)
    encoder.save_pretrained(tmp_path / "encoder")
    own = encoder.encode_query(TEXTS) if prompt else encoder.encode(TEXTS)
    for stock in stock_vectors(tmp_path / "encoder", prompt):
        np.testing.assert_allclose(stock, own, rtol=0, atol=1e-6)


def test_text_pooling_without_a_prompt_is_said_with_its_cosine(
    tiny_llama_folder: Path, tmp_path: Path, stock_vectors: Stock
) -> None:
    encoder = convert(tiny_llama_folder, pool_over="text")
    encoder.save_pretrained(tmp_path / "encoder")
    padded, _ = stock_vectors(tmp_path / "encoder", None)
    cosines = (padded * encoder.encode(TEXTS)).sum(axis=1)
    assert cosines.min() < 0.999
    notes = json.loads((tmp_path / "encoder" / "bothways.json").read_text())["notes"]
    assert "also pools the beginning-of-sequence token" in notes[0]
    assert notes[0] in (tmp_path / "encoder" / "README.md").read_text()


@pytest.fixture
def stablelm(tiny_llama_folder: Path, tmp_path: Path) -> Path:
    shape = {
        "vocab_size": 501,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 48,
    }
    StableLmForCausalLM(StableLmConfig(**shape, initializer_range=0.2)).save_pretrained(tmp_path / "base")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "base" / name).write_bytes((tiny_llama_folder / name).read_bytes())
    return tmp_path / "base"


def test_a_family_that_ignores_the_flag_is_saved_with_eager(
    stablelm: Path, tmp_path: Path, stock_vectors: Stock
) -> None:
    encoder = convert(stablelm)
    encoder.save_pretrained(tmp_path / "encoder")
    options = json.loads((tmp_path / "encoder" / "sentence_bert_config.json").read_text())
    assert options["model_args"] == {"attn_implementation": "eager"}
    for stock in stock_vectors(tmp_path / "encoder", None):
        np.testing.assert_allclose(stock, encoder.encode(TEXTS), rtol=0, atol=1e-5)


def test_what_sentence_transformers_saves_again_is_measured(
    stablelm: Path, tiny_llama_folder: Path, tmp_path: Path
) -> None:
    """Its own save drops the attention that StableLM needs: under the default one, unpadded batches are causal."""
    for base in (tiny_llama_folder, stablelm):
        encoder = convert(base)
        encoder.to_sentence_transformer().save(str(tmp_path / base.name))
        if base == stablelm:
            with pytest.raises(ConversionError, match=r'(?s)still hides the future.*Use attn_implementation="eager"'):
                Encoder.from_pretrained(tmp_path / base.name, attn_implementation="sdpa")
        again = Encoder.from_pretrained(tmp_path / base.name, attn_implementation="eager")
        assert again.settings.direction == "bidirectional"
        np.testing.assert_allclose(again.encode(TEXTS), encoder.encode(TEXTS), rtol=0, atol=1e-5)


@pytest.mark.parametrize("base", ["tiny_llama_folder", "tiny_untied_folder"])
def test_save_then_load_is_the_identity(base: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    encoder = convert(request.getfixturevalue(base), pool_over="text", pooling="weighted_mean", append_eos=True)
    encoder.save_pretrained(tmp_path / "encoder")
    again = Encoder.from_pretrained(tmp_path / "encoder")
    np.testing.assert_array_equal(again.encode(TEXTS), encoder.encode(TEXTS))
    assert again.settings == encoder.settings
    assert [stage["stage"] for stage in again.record.stages] == ["convert"]
    assert (again.head.weight == encoder.head.weight).all()
    assert again.head.tied == encoder.head.tied == ("untied" not in base)


def test_an_untied_head_can_be_left_out(tiny_untied_folder: Path, tmp_path: Path) -> None:
    encoder = convert(tiny_untied_folder)
    encoder.save_pretrained(tmp_path / "encoder", head=False)
    assert Encoder.from_pretrained(tmp_path / "encoder").head is None


def test_the_files_that_engines_read(tiny_llama_folder: Path, tmp_path: Path) -> None:
    convert(tiny_llama_folder, max_length=99, prompts=PROMPTS).save_pretrained(tmp_path / "encoder")
    found = {path.relative_to(tmp_path / "encoder"): path for path in (tmp_path / "encoder").rglob("*.json")}
    content = {str(name): json.loads(path.read_text()) for name, path in found.items()}
    assert content["config.json"]["is_causal"] is False
    assert content["config.json"]["use_bidirectional_attention"] is True
    assert content["1_Pooling/config.json"]["pooling_mode_mean_tokens"] is True
    assert content["sentence_bert_config.json"]["max_seq_length"] == 99
    assert content["config_sentence_transformers.json"]["prompts"] == PROMPTS
    assert content["tokenizer_config.json"]["pad_token"] == "</s>"
    assert (tmp_path / "encoder" / "2_Normalize").is_dir()


def test_a_folder_whose_flag_was_edited_is_refused(tiny_llama_folder: Path, tmp_path: Path) -> None:
    convert(tiny_llama_folder).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "is_causal": True}))
    with pytest.raises(ConversionError, match="no longer says is_causal=false"):
        Encoder.from_pretrained(tmp_path)


def test_a_folder_that_differs_from_its_certificate_is_refused(tiny_llama_folder: Path, tmp_path: Path) -> None:
    convert(tiny_llama_folder).save_pretrained(tmp_path)
    record = json.loads((tmp_path / "bothways.json").read_text())
    record["certificate"]["modules"][1]["unpadded"]["right"] = 0
    (tmp_path / "bothways.json").write_text(json.dumps(record))
    with pytest.raises(ConversionError, match=r"not what its certificate says: layers\.1\.self_attn was"):
        Encoder.from_pretrained(tmp_path)


def test_a_causal_encoder_stays_causal_and_says_so(tiny_llama_folder: Path, tmp_path: Path) -> None:
    encoder = convert(tiny_llama_folder, direction="causal")
    encoder.save_pretrained(tmp_path / "encoder")
    again = Encoder.from_pretrained(tmp_path / "encoder")
    assert again.record.certificate.direction == "causal"
    np.testing.assert_array_equal(again.encode(TEXTS), encoder.encode(TEXTS))
    assert np.abs(again.encode(TEXTS) - convert(tiny_llama_folder).encode(TEXTS)).max() > 1e-3
    assert "is_causal" not in json.loads((tmp_path / "encoder" / "config.json").read_text())


def test_nothing_is_overwritten_silently(tiny_llama_folder: Path, tmp_path: Path) -> None:
    encoder = convert(tiny_llama_folder)
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"exists and is not empty. Choose another folder, or pass overwrite=True"):
        encoder.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]
    encoder.save_pretrained(tmp_path, overwrite=True)
    assert (tmp_path / "model.safetensors").exists()


def test_a_foreign_sentence_transformers_folder_opens_as_it_is(tiny_llama_folder: Path, tmp_path: Path) -> None:
    encoder = convert(tiny_llama_folder, direction="causal", pooling="last", normalize=False, prompts=PROMPTS)
    stock = encoder.to_sentence_transformer()
    stock.save(str(tmp_path / "foreign"))
    again = Encoder.from_pretrained(tmp_path / "foreign")
    assert again.settings.direction == "causal"
    assert again.settings.pooling == "last"
    np.testing.assert_allclose(again.encode_query(TEXTS), encoder.encode_query(TEXTS), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "bothways.json").write_text("{"), r"bothways.json line 1: .*Restore the file"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
    ],
)
def test_a_damaged_folder_is_named(damage: object, reason: str, tiny_llama_folder: Path, tmp_path: Path) -> None:
    convert(tiny_llama_folder).save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(BothwaysError, match=reason):
        Encoder.from_pretrained(tmp_path)


def test_missing_weights_are_an_error_not_random_numbers(tiny_llama_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    convert(tiny_llama_folder).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("layers.1.mlp.up_proj.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        DataError, match=r"1 weights are not in the files, the first is layers\.1\.mlp\.up_proj\.weight"
    ):
        Encoder.from_pretrained(tmp_path)


def test_a_plain_decoder_is_sent_to_convert(tiny_llama_folder: Path) -> None:
    with pytest.raises(DataError, match=r"neither a bothways nor a sentence-transformers folder.*bothways convert"):
        Encoder.from_pretrained(tiny_llama_folder)


def test_a_name_that_is_no_folder_and_not_on_the_hub(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not a folder. Pass a folder with a config.json, or a hub id"):
        convert(tmp_path / "nowhere")
    with pytest.raises(DataError, match='"nobody/nothing" is no folder here, and the hub gave none'):
        convert("nobody/nothing")


def test_a_hub_id_is_fetched_and_converted(
    tiny_llama_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def snapshot(
        name: str, *, revision: str | None, allow_patterns: list[str] | None, ignore_patterns: list[str]
    ) -> str:
        asked.append((name, revision, allow_patterns is None and "*.bin" in ignore_patterns))
        return str(tiny_llama_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    encoder = convert("someone/tiny", revision="v2")
    assert asked == [("someone/tiny", "v2", True)]
    assert encoder.record.base == "someone/tiny"
    np.testing.assert_array_equal(encoder.encode(TEXTS), convert(tiny_llama_folder).encode(TEXTS))
