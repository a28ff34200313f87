"""Contract: a push to a hub on this machine arrives whole and opens by its name; what can go wrong is said first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from local_hub import READ_ONLY, TOKEN, Hub, local_hub

from bothways import Encoder, convert
from bothways.cli import main
from bothways.errors import HubError

# huggingface_hub uploads in a way that its own HTTP library has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

TEXTS = ["How do I open a compressed file?", "short"]
ROUND_TRIP = """
import json, sys
import numpy as np
from bothways import Encoder
from bothways.cli import main
from sentence_transformers import SentenceTransformer
folder, out, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
encoder = Encoder.from_pretrained(folder, device="cpu")
print(encoder.push_to_hub("me/enc", private=True, commit_message="The first"))
np.savez(
    out,
    own=Encoder.from_pretrained("me/enc", device="cpu").encode(texts),
    stock=SentenceTransformer("me/enc", device="cpu").encode(texts),
)
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with local_hub() as found:
        yield found


@pytest.fixture
def encoder(tiny_llama_folder: Path) -> Encoder:
    return convert(tiny_llama_folder, dtype="float32", device="cpu")


@pytest.fixture
def online(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """This process talks to the hub of this machine."""
    for name, value in (("ENDPOINT", hub.endpoint), ("HF_HUB_OFFLINE", False), ("HF_HUB_DISABLE_XET", True)):
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


def test_what_is_pushed_opens_by_its_name_in_both(hub: Hub, encoder: Encoder, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path / "enc")
    environment = {
        **os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home"), "TRANSFORMERS_VERBOSITY": "error",
    }  # fmt: skip
    command = [sys.executable, "-c", ROUND_TRIP, str(tmp_path / "enc"), str(tmp_path / "found.npz"), json.dumps(TEXTS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == f"{hub.endpoint}/me/enc/commit/{'c' * 40}"
    found = np.load(tmp_path / "found.npz")
    for name in ("own", "stock"):
        np.testing.assert_allclose(found[name], encoder.encode(TEXTS), rtol=0, atol=1e-6)
    assert hub.private == {"me/enc": True}
    assert hub.commits == ["The first"]
    files = hub.repos["me/enc"]["main"]
    written = {str(p.relative_to(tmp_path / "enc")): p for p in (tmp_path / "enc").rglob("*") if p.is_file()}
    assert set(files) == set(written)
    assert files["model.safetensors"] == written["model.safetensors"].read_bytes()
    assert json.loads(files["config.json"]) == json.loads(written["config.json"].read_text())
    card = files["README.md"].decode()
    assert 'SentenceTransformer("me/enc")' in card
    assert "FOLDER" not in card


def test_the_verb_pushes_a_folder_as_it_is_and_old_weights_go(
    online: Hub, encoder: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder.save_pretrained(tmp_path / "enc")
    (tmp_path / "enc" / "adapter").mkdir()
    (tmp_path / "enc" / "adapter" / "note.txt").write_text("kept")
    online.repos["me/enc"] = {"main": {"old-00001-of-00002.safetensors": b"x", "kept.txt": b"y"}}
    with pytest.raises(SystemExit) as left:
        main(["push", str(tmp_path / "enc"), "me/enc", "--revision", "v2", "--message", "Again", "--device", "cpu"])
    shown = capsys.readouterr()
    assert left.value.code == 0, shown.err
    assert shown.out.strip() == f"{online.endpoint}/me/enc/commit/{'c' * 40}"
    assert "bidirectional, measured in 3 mixing sub-modules" in shown.err
    branch = online.repos["me/enc"]["v2"]
    assert branch["adapter/note.txt"] == b"kept"
    assert branch["kept.txt"] == b"y"
    assert [name for name in branch if name.endswith(".safetensors")] == ["model.safetensors"]
    assert list(online.repos["me/enc"]["main"]) == ["old-00001-of-00002.safetensors", "kept.txt"]
    assert online.commits == ["Again"]


@pytest.mark.parametrize(
    ("repo", "token", "reason"),
    [
        ("a/b/c", TOKEN, '"a/b/c" cannot be the name of a repository'),
        ("me/enc", None, "nobody is logged in. Run `hf auth login`, set HF_TOKEN, or pass token="),
        ("me/enc", "hf_unknown", "the hub does not know the token"),
        ("me/enc", READ_ONLY, "the token may not write there"),
    ],
)
def test_what_the_hub_refuses(
    repo: str, token: str | None, reason: str, online: Hub, encoder: Encoder, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(HubError, match=reason):
        encoder.push_to_hub(repo, token=token)
    assert not online.repos


def test_a_hub_that_cannot_be_reached(online: Hub, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        HubError, match=r"http://127\.0\.0\.1:9 cannot be reached .* Try again where there is a network"
    ):
        encoder.push_to_hub("me/enc")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        encoder.push_to_hub("me/enc")


def test_what_no_file_holds_is_not_pushed(online: Hub, encoder: Encoder) -> None:
    """A hook on the model changes its vectors, and is in no file."""
    encoder.model.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {**kwargs, "input_ids": kwargs["input_ids"].flip(1)}), with_kwargs=True
    )
    from bothways.errors import ConversionError

    with pytest.raises(ConversionError, match="What was written gives other vectors than the encoder does"):
        encoder.push_to_hub("me/enc")
    assert not online.repos
