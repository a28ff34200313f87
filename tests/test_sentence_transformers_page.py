"""Contract: `docs/sentence-transformers.md` shows what is done: its Python and its commands are run."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
from bidirectional.tiny import tiny
from huggingface_hub import constants
from local_hub import TOKEN, local_hub
from pages import as_it_runs, blocks

from bothways import convert, loading
from bothways.bidirectional.conversion import plain_backend
from bothways.cli import main

PAGE = Path(__file__).resolve().parents[1] / "docs" / "sentence-transformers.md"
TEXT = PAGE.read_text(encoding="utf-8")
SIZES = {"vocab_size": 501, "max_position_embeddings": 256, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 1}


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_the_python_and_then_the_commands_run(
    tiny_llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "EMBEDDED", tiny_llama_folder)
    tiny("lfm2", head=True, **SIZES).save_pretrained(tmp_path / "hybrid")
    for file in tiny_llama_folder.glob("*token*"):
        shutil.copy(file, tmp_path / "hybrid" / file.name)
    convert(tmp_path / "hybrid", device="cpu").save_pretrained("hybrid-encoder")
    assert as_it_runs(PAGE) == TEXT
    with local_hub() as hub:
        for name, value in (("ENDPOINT", hub.endpoint), ("HF_HUB_OFFLINE", False), ("HF_HUB_DISABLE_XET", True)):
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        for line in "".join(blocks("console", TEXT)).splitlines():
            program, *arguments = shlex.split(line.removeprefix("$ "))
            assert program == "bothways"
            with pytest.raises(SystemExit) as left:
                main(arguments)
            assert left.value.code == 0, line
        assert hub.private == {"me/my-encoder": True}
        assert {"modules.json", "model.safetensors"} <= set(hub.repos["me/my-encoder"]["main"])
    assert not (tmp_path / "stock" / "adapter").exists()


@pytest.mark.parametrize(
    ("families", "backend"),
    [(("llama", "gpt2", "opt"), "sdpa"), (("stablelm", "nemotron", "gemma2"), "eager"), (("gpt_neo", "lfm2"), None)],
)
def test_its_table_is_what_is_measured(families: tuple[str, ...], backend: str | None) -> None:
    from bothways import make_bidirectional

    for name in families:
        assert name in TEXT
        model = tiny(name, "eager")
        assert plain_backend(model, make_bidirectional(model)) == backend
