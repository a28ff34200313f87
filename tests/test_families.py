"""Contract: what is not plain attention goes the whole way too: hybrids, ALiBi, Gemma 3's own key, BERT."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bidirectional.tiny import RECURRENT
from peft import PeftModel
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, BertConfig, BertForMaskedLM

from bothways import MNTP, Encoder, Supervised, convert, mntp, supervised
from bothways.bidirectional.gate import GATE_START, Gate
from bothways.bidirectional.probe import probe
from bothways.cli import main
from bothways.data import Example
from bothways.errors import ConfigError, ConversionError, DataError, TrainingError
from bothways.evaluation.baselines import random_weights

QUICK: dict[str, Any] = {"batch_size": 4, "held_out_items": 3, "precision": "fp32"}
SHAPE = {
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
}
FAMILIES: dict[str, dict[str, Any]] = {
    "jamba": RECURRENT["jamba"],
    "lfm2": RECURRENT["lfm2"],
    "mamba": {**RECURRENT["mamba"], "tie_word_embeddings": True},
    "bloom": {},
    "gemma3_text": {
        "head_dim": 12,
        "sliding_window": 40,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}


@pytest.fixture(params=["jamba", "lfm2", "mamba", "bloom"])
def family(request: pytest.FixtureRequest, tiny_llama_folder: Path, tmp_path: Path) -> Path:
    return folder_of(str(request.param), tiny_llama_folder, tmp_path / str(request.param))


def folder_of(name: str, tokenizer_of: Path, folder: Path) -> Path:
    """A random decoder of the family, with the tokenizer of another folder."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[name](**{**SHAPE, **FAMILIES[name]})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for file in tokenizer_of.glob("*token*"):
        shutil.copy(file, folder / file.name)
    return folder


def gates(encoder: Encoder) -> list[float]:
    return [float(part.share().detach().mean()) for part in encoder.model.modules() if isinstance(part, Gate)]


# peft 0.21 asks transformers by a name that 5.23 has deprecated.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_convert_save_load_mntp_save_load_supervised(family: Path, real_texts: list[str], tmp_path: Path) -> None:
    texts = real_texts[:30]
    encoder = convert(family, attn_implementation="eager")
    encoder.save_pretrained(tmp_path / "0")
    again = Encoder.from_pretrained(tmp_path / "0", attn_implementation="eager")
    np.testing.assert_allclose(again.encode(texts[:5]), encoder.encode(texts[:5]), rtol=0, atol=1e-6)

    settings = MNTP(**QUICK, steps=6, block_size=32, lora_r=4, learning_rate=5e-3)
    trained = mntp(again, texts, settings, show_progress=False)
    trained.save_pretrained(tmp_path / "1")
    opened = Encoder.from_pretrained(tmp_path / "1", attn_implementation="eager")
    np.testing.assert_allclose(opened.encode(texts[:5]), trained.encode(texts[:5]), rtol=0, atol=1e-6)
    assert opened.record.certificate is not None
    assert opened.record.certificate.direction == "bidirectional"
    assert opened.record.certificate.converted
    assert np.abs(opened.encode(texts[:5]) - encoder.encode(texts[:5])).max() > 1e-3
    if gates(encoder):
        assert gates(encoder) == pytest.approx([GATE_START] * len(gates(encoder)), rel=1e-4)
        assert gates(opened) == gates(trained)
        assert all(abs(share - GATE_START) > 1e-3 for share in gates(opened)), "LoRA trains the gates too"
        # The adapter holds the gates, too: on the converted base it gives the same vectors.
        base = Encoder.from_pretrained(tmp_path / "0", attn_implementation="eager")
        base.model = PeftModel.from_pretrained(base.model, str(tmp_path / "1" / "adapter")).eval().base_model.model
        np.testing.assert_allclose(base.encode(texts[:5]), opened.encode(texts[:5]), rtol=0, atol=1e-5)
        assert probe(base.model).modules[0].share == pytest.approx(gates(opened)[0], rel=1e-4)

    pairs = [Example(text.split(".")[0], text) for text in texts]
    done = supervised(opened, pairs, Supervised(**QUICK, steps=2, tune="full"), show_progress=False)
    assert np.isfinite(done.record.stages[-1]["loss"])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_dora_with_a_mask_row_of_its_own_merged_back(family: Path, real_texts: list[str], tmp_path: Path) -> None:
    settings = MNTP(
        **QUICK, steps=3, block_size=32, lora_r=4, learning_rate=5e-3, tune="dora", mask_token="new", merge_back=0.25
    )
    encoder = convert(family, attn_implementation="eager")
    encoder.save_pretrained(tmp_path / "0")
    start, rows = gates(encoder), encoder.model.get_input_embeddings().weight.shape[0]
    mntp(encoder, real_texts[:30], settings, show_progress=False).save_pretrained(tmp_path / "1")
    opened = Encoder.from_pretrained(tmp_path / "1", attn_implementation="eager")
    assert opened.model.get_input_embeddings().weight.shape[0] == rows + 1
    expected = encoder.encode(real_texts[:5])
    np.testing.assert_allclose(opened.encode(real_texts[:5]), expected, rtol=0, atol=1e-6)
    assert not start or gates(opened) != start
    # The adapter is for the base as it was: texts never hold the new row.
    base = Encoder.from_pretrained(tmp_path / "0", attn_implementation="eager")
    base.model = PeftModel.from_pretrained(base.model, str(tmp_path / "1" / "adapter")).eval().base_model.model
    np.testing.assert_allclose(base.encode(real_texts[:5]), expected, rtol=0, atol=1e-5)


def test_what_plain_code_cannot_reproduce_is_said(family: Path, tmp_path: Path) -> None:
    convert(family, attn_implementation="eager").save_pretrained(tmp_path / "enc")
    note = "A plain loader opens these weights causal, because part of the conversion lives in code"
    assert note in (tmp_path / "enc" / "README.md").read_text()
    assert any(note in text for text in json.loads((tmp_path / "enc" / "bothways.json").read_text())["notes"])


def test_an_interrupted_stage_of_a_hybrid_goes_on_as_if_nothing_had_been(
    tiny_llama_folder: Path, real_texts: list[str], tmp_path: Path
) -> None:
    """The gates are part of what is trained, and so of a checkpoint."""
    folder = folder_of("lfm2", tiny_llama_folder, tmp_path / "lfm2")
    settings = MNTP(**QUICK, steps=4, block_size=32, lora_r=4, learning_rate=5e-3, save_every=2)
    whole = mntp(convert(folder), real_texts[:30], settings, checkpoint_dir=tmp_path / "a", show_progress=False)
    mntp(convert(folder), real_texts[:30], settings, checkpoint_dir=tmp_path / "b", show_progress=False)
    for path in sorted((tmp_path / "b").iterdir())[1:]:
        (shutil.rmtree if path.is_dir() else Path.unlink)(path)
    resumed = mntp(
        convert(folder), real_texts[:30], settings, checkpoint_dir=tmp_path / "b", resume=True, show_progress=False
    )
    assert gates(resumed) == gates(whole)
    np.testing.assert_array_equal(resumed.encode(real_texts[:5]), whole.encode(real_texts[:5]))


PLAIN = """
import sys
from sentence_transformers import SentenceTransformer
import numpy as np
np.save(sys.argv[3], SentenceTransformer(sys.argv[1]).encode(open(sys.argv[2]).read().splitlines()))
assert "bothways" not in sys.modules
"""


def test_gemma_3_is_converted_by_its_own_key_which_plain_code_reads_alike(
    tiny_llama_folder: Path, real_texts: list[str], tmp_path: Path
) -> None:
    """Beyond the halved window too: texts of more than 20 tokens either way."""
    encoder = convert(folder_of("gemma3_text", tiny_llama_folder, tmp_path / "gemma"))
    assert encoder.settings.windows == "native"
    certificate = encoder.record.certificate
    assert certificate is not None
    assert [mixer.window for mixer in certificate.modules] == [20, None]
    encoder.save_pretrained(tmp_path / "enc")
    config = json.loads((tmp_path / "enc" / "config.json").read_text())
    assert config["use_bidirectional_attention"] is True
    assert config["sliding_window"] == 40
    again = Encoder.from_pretrained(tmp_path / "enc")
    assert again.settings.windows == "native"
    texts = [text[:400] for text in real_texts if len(text) > 200][:5]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    command = [sys.executable, "-c", PLAIN, tmp_path / "enc", tmp_path / "texts.txt", tmp_path / "vectors.npy"]
    subprocess.run(command, check=True, capture_output=True)
    vectors = again.encode(texts)
    np.testing.assert_allclose(np.load(tmp_path / "vectors.npy"), vectors, rtol=0, atol=1e-5)
    kept = convert(tmp_path / "gemma", windows="keep")
    assert np.abs(kept.encode(texts) - vectors).max() > 1e-3, "another function beyond the window"
    with pytest.raises(ConfigError, match='windows="native": llama has no key'):
        convert(tiny_llama_folder, windows="native")


def test_a_gemma_3_folder_that_lost_its_key_is_refused(tiny_llama_folder: Path, tmp_path: Path) -> None:
    convert(folder_of("gemma3_text", tiny_llama_folder, tmp_path / "gemma")).save_pretrained(tmp_path / "enc")
    path = tmp_path / "enc" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "use_bidirectional_attention": False}))
    with pytest.raises(ConversionError, match="no longer says use_bidirectional_attention=true"):
        Encoder.from_pretrained(tmp_path / "enc")


def test_bert_is_an_encoder_already(
    tiny_llama_folder: Path, real_texts: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The BERT rows of the paper: nothing to convert, no head for MNTP, contrastive learning as for all."""
    shape = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 56}
    BertForMaskedLM(BertConfig(vocab_size=501, pad_token_id=1, **shape)).save_pretrained(tmp_path / "bert")
    for file in tiny_llama_folder.glob("*token*"):
        shutil.copy(file, tmp_path / "bert" / file.name)
    with pytest.raises(SystemExit) as left:
        main(["convert", str(tmp_path / "bert"), "--out", str(tmp_path / "enc")])
    assert left.value.code == 0
    assert "bert: bidirectional as it came, nothing to convert, measured in 2" in capfd.readouterr().err
    encoder = Encoder.from_pretrained(tmp_path / "enc")
    assert not encoder.record.certificate.converted
    pairs = [Example(text.split(".")[0], text) for text in real_texts[:20]]
    trained = supervised(encoder, pairs, Supervised(**QUICK, steps=2), show_progress=False)
    assert np.isfinite(trained.record.stages[-1]["loss"])
    with pytest.raises(TrainingError, match="no language-model head"):
        mntp(encoder, real_texts[:20], MNTP(**QUICK, steps=1), show_progress=False)


@pytest.mark.parametrize("windows", ["auto", "keep", "full", "native"])
def test_a_base_that_has_its_own_key_set_already_is_saved_and_opened(
    windows: Any, tiny_llama_folder: Path, real_texts: list[str], tmp_path: Path
) -> None:
    """As EmbeddingGemma has."""
    folder = folder_of("gemma3_text", tiny_llama_folder, tmp_path / "gemma")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "use_bidirectional_attention": True}))
    encoder = convert(folder, windows=windows)
    encoder.save_pretrained(tmp_path / "enc")
    again = Encoder.from_pretrained(tmp_path / "enc")
    np.testing.assert_allclose(again.encode(real_texts[:5]), encoder.encode(real_texts[:5]), rtol=0, atol=1e-6)


def test_foreign_encoders_by_nature_and_by_their_own_key_are_saved_and_opened(
    tiny_llama_folder: Path, real_texts: list[str], tmp_path: Path
) -> None:
    folders = {"gemma": folder_of("gemma3_text", tiny_llama_folder, tmp_path / "gemma"), "bert": tmp_path / "bert"}
    shape = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 56}
    BertForMaskedLM(BertConfig(vocab_size=501, pad_token_id=1, **shape)).save_pretrained(folders["bert"])
    for file in tiny_llama_folder.glob("*token*"):
        shutil.copy(file, folders["bert"] / file.name)
    for name, folder in folders.items():
        convert(folder).to_sentence_transformer().save(str(tmp_path / f"{name}-stock"))
        foreign = Encoder.from_pretrained(tmp_path / f"{name}-stock")
        assert foreign.settings.windows == ("native" if name == "gemma" else "keep")
        foreign.save_pretrained(tmp_path / f"{name}-own")
        own = Encoder.from_pretrained(tmp_path / f"{name}-own")
        np.testing.assert_allclose(own.encode(real_texts[:5]), foreign.encode(real_texts[:5]), rtol=0, atol=1e-6)


def test_a_causal_encoder_has_no_windows_to_open(tiny_llama_folder: Path) -> None:
    with pytest.raises(ConfigError, match='windows="full" opens or narrows windows on both sides, but direction='):
        convert(tiny_llama_folder, direction="causal", windows="full")


def test_a_random_hybrid_is_a_baseline_too(tiny_llama_folder: Path, real_texts: list[str], tmp_path: Path) -> None:
    encoder = convert(folder_of("lfm2", tiny_llama_folder, tmp_path / "lfm2"))
    fresh = random_weights(encoder, seed=1)
    assert gates(fresh) == gates(encoder)
    assert np.abs(fresh.encode(real_texts[:3]) - encoder.encode(real_texts[:3])).max() > 1e-2


def test_the_fastest_attention_is_chosen_at_conversion_and_at_load(tiny_llama_folder: Path, tmp_path: Path) -> None:
    encoder = convert(tiny_llama_folder, attn_implementation="auto")
    assert encoder.model.config._attn_implementation == "sdpa"
    encoder.save_pretrained(tmp_path / "enc")
    again = Encoder.from_pretrained(tmp_path / "enc", attn_implementation="auto")
    assert again.model.config._attn_implementation == "sdpa"


def test_show_draws_who_sees_whom_for_each_kind_of_layer(
    tiny_llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of("jamba", tiny_llama_folder, tmp_path / "jamba")
    for direction in ("bidirectional", "causal"):
        convert(folder, direction=direction).save_pretrained(tmp_path / direction)
        with pytest.raises(SystemExit) as left:
            main(["show", str(tmp_path / direction), "--certificate"])
        assert left.value.code == 0
        shown = capsys.readouterr().out
        assert "layers.0.mamba: JambaMambaMixer, recurrence or convolution" in shown
        assert "layers.1.self_attn: JambaAttention, attention" in shown
        matrices = [line for line in shown.splitlines() if set(line) <= {"■", "·", " "} and len(line) == 21]
        assert len(matrices) == 22
        seen = sum(line.count("■") for line in matrices)
        assert seen == (242 if direction == "bidirectional" else 132)


def test_an_encoder_decoder_and_an_unknown_remote_model_are_refused(tmp_path: Path, tiny_llama_folder: Path) -> None:
    for name, config in (("bart", {"model_type": "bart"}), ("remote", {"model_type": "x", "auto_map": {}})):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        for file in tiny_llama_folder.glob("*token*"):
            shutil.copy(file, folder / file.name)
    with pytest.raises(ConversionError, match="bart is an encoder-decoder, whose encoder sees both ways"):
        convert(tmp_path / "bart")
    with pytest.raises(DataError, match=r"remote/config\.json"):
        convert(tmp_path / "remote")
