"""Contract: servers of other people get the keys they read and the command that starts them, or a refusal by name."""

from __future__ import annotations

import json
import runpy
import shlex
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bidirectional.tiny import WINDOW as WINDOW_OF_TINY
from bidirectional.tiny import tiny
from export.servable import WINDOW, decoder
from pages import blocks
from torch import nn
from transformers import AutoTokenizer

from bothways import Encoder, convert
from bothways.cli import main
from bothways.engines import ENGINES, SGLANG, TEI, VLLM, Engine
from bothways.errors import ConfigError
from bothways.export import TARGETS, export
from bothways.export.serving import SERVERS, next_steps
from bothways.export.serving.allowed import require_served
from bothways.export.serving.tei import rotary_keys
from bothways.provenance import EncoderSettings, Record
from bothways.vllm_plugin import ARCHITECTURE, MODEL, register
from bothways.vllm_plugin.opening import open_attention, require_mendable, require_open

NATIVE = {"windows": "native"}
KEY = {"use_bidirectional_attention": True}


@pytest.fixture
def made(tiny_llama_folder: Path, tmp_path: Path) -> Any:
    """Makes an encoder of a family, and its folder."""

    def make(family: str, **changes: Any) -> tuple[Encoder, Path]:
        base = decoder(family, tiny_llama_folder, tmp_path / "base")
        encoder = convert(base, dtype="float32", device="cpu", **changes)
        encoder.save_pretrained(tmp_path / "enc")
        return encoder, tmp_path / "enc"

    return make


@pytest.fixture
def bare(tiny_llama_folder: Path) -> Any:
    """Puts an encoder together that says what it is, without converting anything."""

    def make(family: str, shape: dict[str, Any] | None = None, **settings: Any) -> Encoder:
        tokenizer = AutoTokenizer.from_pretrained(tiny_llama_folder)
        return Encoder(
            tiny(family, "eager", **(shape or {})), tokenizer, EncoderSettings(**settings), Record(base=family)
        )

    return make


def write(to: str, encoder: Encoder, folder: Path, out: Path, number_format: str | None = None) -> None:
    module, name = TARGETS[to].split(":")
    target = getattr(import_module(f"bothways.export.{module}"), name)
    target(encoder, folder, out, number_format=number_format).close()


def config_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(
    ("to", "family", "changes", "keys"),
    [
        ("vllm", "llama", {}, {"is_causal": False}),
        ("vllm", "gemma3_text", NATIVE, {"use_bidirectional_attention": True}),
        ("vllm", "gemma", {}, {"is_causal": False, "architectures": [ARCHITECTURE]}),
        ("tei", "qwen2", {}, {"is_causal": False, "rope_theta": 10000.0}),
        ("tei", "llama", {}, {"use_bidirectional_attention": True, "rope_theta": 10000.0}),
        ("tei", "gemma3_text", NATIVE, {"use_bidirectional_attention": True, "rope_local_base_freq": 10000.0}),
        ("sglang", "gemma3_text", NATIVE, {"use_bidirectional_attention": True}),
    ],
)
def test_the_keys_that_a_server_reads(
    to: str, family: str, changes: dict[str, Any], keys: dict[str, Any], made: Any, tmp_path: Path
) -> None:
    encoder, folder = made(family, max_length=WINDOW, **changes)
    write(to, encoder, folder, tmp_path / "out")
    config = config_in(tmp_path / "out")
    assert {key: config.get(key) for key in keys} == keys
    assert {key: config[key] for key in ("model_type", "dtype")} == {"model_type": family, "dtype": "float32"}
    assert json.loads((tmp_path / "out" / "sentence_bert_config.json").read_text())["max_seq_length"] == WINDOW
    assert json.loads((tmp_path / "out" / "1_Pooling" / "config.json").read_text())["pooling_mode_mean_tokens"] is True
    modules = json.loads((tmp_path / "out" / "modules.json").read_text())
    assert [module["path"] for module in modules] == ["", "1_Pooling", "2_Normalize"]


def test_the_head_stays_behind(tiny_untied_folder: Path, tmp_path: Path) -> None:
    convert(tiny_untied_folder, device="cpu").save_pretrained(tmp_path / "enc")
    export(tmp_path / "enc", "vllm", tmp_path / "out", device="cpu")
    assert Encoder.from_pretrained(tmp_path / "enc", device="cpu").head is not None
    assert Encoder.from_pretrained(tmp_path / "out", device="cpu").head is None


@pytest.mark.parametrize(
    ("to", "family", "lines"),
    [
        (
            "vllm",
            "llama",
            """
            vllm serve OUT --runner pooling --dtype float32
            bothways verify http://127.0.0.1:8000/v1/embeddings --against ENC
            """,
        ),
        (
            "vllm",
            "opt",
            """
            pip install --no-deps bothways
            vllm serve OUT --runner pooling --dtype float32
            bothways verify http://127.0.0.1:8000/v1/embeddings --against ENC
            """,
        ),
        (
            "tei",
            "qwen3",
            """
            text-embeddings-router --model-id OUT --pooling mean --port 8080
            bothways verify http://127.0.0.1:8080/embed --against ENC
            """,
        ),
    ],
)
def test_the_command_says_what_to_run_next(
    to: str, family: str, lines: str, made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (_, folder), out = made(family), tmp_path / "the out"
    with pytest.raises(SystemExit) as left:
        main(["export", str(folder), "--to", to, "--out", str(out), "--device", "cpu"])
    captured = capsys.readouterr()
    assert left.value.code == 0, captured.err
    expected = [line.strip() for line in lines.strip().splitlines()]
    places = {"OUT": shlex.quote(str(out)), "ENC": str(folder)}
    for name, place in places.items():
        expected = [line.replace(name, place) for line in expected]
    assert captured.out.splitlines() == expected
    assert f"export: written to {out}" in captured.err


def test_sglang_is_told_the_attention_that_was_read_to_be_right(tmp_path: Path) -> None:
    assert next_steps("sglang", "enc", tmp_path / "out").splitlines()[0] == (
        f"python -m sglang.launch_server --model-path {tmp_path / 'out'} --is-embedding --attention-backend fa3"
    )


@pytest.mark.parametrize(
    ("to", "family", "changes", "said"),
    [
        (
            "vllm",
            "gpt2",
            {},
            r"export .*enc --to vllm: gpt2 is not among the families that vLLM 0\.32\.0 serves both ways \(measured\): "
            r"gemma3_text, llama, mistral, phi3, qwen2, qwen3, and where bothways is installed beside it gemma, "
            r"gpt_neox, olmo2, opt\. Others it refuses, or serves causal without a word\. "
            r"Serve it with `bothways serve .*enc`\.",
        ),
        ("vllm", "gemma2", {}, r"gemma2 is not among the families that vLLM"),
        ("tei", "phi3", {}, r"\(as its source was read\).*Export it --to vllm, or serve it with `bothways serve"),
        (
            "sglang",
            "llama",
            {},
            r"llama is not among .* SGLang .*: gemma3_text\..*Export it --to vllm or tei, or serve",
        ),
        ("vllm", "gemma3_text", {}, r"by the family's own key alone.*Convert and train with --windows native\."),
        ("vllm", "llama", {"pooling": "weighted_mean"}, r'does not know pooling="weighted_mean", only cls, last, mean'),
        (
            "vllm",
            "llama",
            {"pool_over": "text", "prompts": {"query": "Find: "}},
            r'pools all tokens of its input, and pool_over="text" leaves out',
        ),
        ("tei", "llama", {"pool_over": "text"}, r'Convert and train with pool_over="all"'),
        ("sglang", "gemma3_text", {"normalize": False, "shape": KEY}, r"scales every vector to unit length"),
        ("sglang", "gemma3_text", {"pooling": "last", "shape": KEY}, r'does not know pooling="last", only mean'),
        ("vllm", "llama", {"direction": "causal"}, r"the encoder is causal.*without --direction causal"),
        ("tei", "mistral", {}, r"texts of up to 512 tokens go beyond the windows of 4 of mistral"),
        (
            "vllm",
            "mistral",
            {},
            r"sees one token less to each side of them\. Convert with --windows full, or with --max-l",
        ),
    ],
)
def test_what_a_server_does_not_serve_right_is_refused_by_name(
    to: str, family: str, changes: dict[str, Any], said: str, bare: Any, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        write(to, bare(family, **changes), tmp_path / "enc", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_windows_that_no_text_exceeds_are_no_matter(bare: Any) -> None:
    for to in ("vllm", "tei"):
        key = require_served(to, bare("mistral", max_length=WINDOW_OF_TINY), Path("enc"))
        assert key == ENGINES[to].families["mistral"]
        require_served(to, bare("mistral", windows="full"), Path("enc"))
        with pytest.raises(ConfigError, match=rf"texts of up to {WINDOW_OF_TINY + 1} tokens go beyond"):
            require_served(to, bare("mistral", max_length=WINDOW_OF_TINY + 1), Path("enc"))


def test_scaled_rotary_positions_are_refused_for_tei(bare: Any, tmp_path: Path) -> None:
    scaled = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}
    with pytest.raises(ConfigError, match=r'rotary positions of the kind "linear" \(rope_theta\) are not known to be'):
        write("tei", bare("llama", scaled), tmp_path / "enc", tmp_path / "out")
    by_layer = {"full_attention": {"rope_type": "default", "rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    assert rotary_keys(by_layer, "export") == {"rope_theta": 1e6, "rope_local_base_freq": 1e4}


def test_text_pooling_of_a_tokenizer_that_adds_nothing_is_pooling_over_all(
    tiny_untied_folder: Path, tmp_path: Path
) -> None:
    encoder = convert(tiny_untied_folder, device="cpu", pool_over="text")
    assert require_served("vllm", encoder, tmp_path) == "is_causal"
    encoder.settings = replace(encoder.settings, prompts={"query": "Find: "})
    with pytest.raises(ConfigError, match=r'pools all tokens of its input, and pool_over="text" leaves out the prompt'):
        require_served("vllm", encoder, tmp_path)


def test_a_number_format_is_the_servers_business(bare: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--to vllm --number-format int8: the folder keeps the encoder's"):
        write("vllm", bare("llama"), tmp_path / "enc", tmp_path / "out", "int8")


def test_every_server_has_its_facts() -> None:
    assert set(SERVERS) <= set(TARGETS)
    assert set(SERVERS) <= set(ENGINES)
    assert VLLM.plugin <= set(VLLM.families)
    assert all(VLLM.families[family] == "is_causal" for family in VLLM.plugin)


@pytest.mark.parametrize("family", sorted(VLLM.plugin))
def test_the_plugin_opens_every_attention_of_its_families(family: str) -> None:
    model = tiny(family)
    assert open_attention(model) == model.config.num_hidden_layers
    assert all(module.is_causal is False for module in model.modules() if hasattr(module, "is_causal"))
    # The class stays as it was, for models of others in the same process.
    assert all(module.is_causal for module in tiny(family).modules() if hasattr(module, "is_causal"))


def test_the_plugin_refuses_what_was_not_measured() -> None:
    for family in sorted(VLLM.plugin):
        require_mendable(SimpleNamespace(model_type=family, is_causal=False))
        with pytest.raises(ValueError, match=r'config\.json does not say "is_causal": false'):
            require_mendable(SimpleNamespace(model_type=family))
    for family in ("gemma2", "gpt2", "llama"):
        with pytest.raises(ValueError, match=rf"{family} was not measured to be right in vLLM by this plugin"):
            require_mendable(SimpleNamespace(model_type=family, is_causal=False))
    with pytest.raises(ValueError, match=r"no attention of Linear says is_causal"):
        open_attention(nn.Linear(3, 5))


def test_the_plugin_looks_at_what_vllm_made() -> None:
    layers = [nn.Identity(), nn.Identity()]
    model = nn.Sequential(*layers)
    with pytest.raises(ValueError, match=r"made attention of the kinds \[\], expected encoder_only alone"):
        require_open(model)
    for layer in layers:
        layer.attn_type = "encoder_only"
    require_open(model)
    layers[1].attn_type = "decoder"
    with pytest.raises(ValueError, match=r"kinds \['decoder', 'encoder_only'\]"):
        require_open(model)


def test_the_plugin_registers_a_name_and_nothing_that_fails_stops_vllm(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[tuple[str, str]] = []
    registry = SimpleNamespace(register_model=lambda name, place: told.append((name, place)))
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(ModelRegistry=registry))
    register()
    assert told == [(ARCHITECTURE, MODEL)]
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace())
    register()
    assert "this vLLM takes no model from a plugin" in caplog.text


def test_the_plugin_needs_none_of_our_dependencies() -> None:
    """vLLM pins some of them lower, so that bothways is installed there without them."""
    code = (
        "import sys\n"
        "from bothways.vllm_plugin import register\n"
        "import bothways.vllm_plugin.opening\n"
        "third = {name.split('.')[0] for name in sys.modules}\n"
        "print(sorted(third & {'transformers', 'peft', 'jaxtyping', 'tyro', 'sklearn', 'rich', 'safetensors'}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_page_of_engines_has_the_table_and_the_commands_of_the_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).resolve().parents[2]
    script = runpy.run_path(str(root / "scripts" / "engines_table.py"))
    page = (root / "docs" / "engines.md").read_text(encoding="utf-8")
    assert script["page"]() == page, "run: python scripts/engines_table.py"
    assert "| gemma | `is_causal` and the plugin | " in script["table"]()
    (block,) = blocks("console", page)
    command, *printed = block.splitlines()
    _, _, folder, *flags = shlex.split(command.removeprefix("$ "))
    given = dict(zip(flags[::2], flags[1::2], strict=True))
    monkeypatch.chdir(tmp_path)
    Path(given["--out"]).mkdir()
    (Path(given["--out"]) / "config.json").write_text('{"dtype": "float32"}')
    assert printed == next_steps(given["--to"], folder, given["--out"]).splitlines()


def test_the_table_says_how_each_fact_came_about() -> None:
    assert (SGLANG.how, TEI.how, VLLM.how) == ("read", "read", "run")
    assert isinstance(VLLM, Engine)
