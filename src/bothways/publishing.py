"""The folder of an encoder -> a repository of the Hugging Face hub."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bothways.errors import HubError

CARD, PLACEHOLDER = "README.md", "FOLDER"
STALE = ["*.safetensors", "*.safetensors.index.json"]
"""Files of an earlier push that go if they are not written again: of two sets of weights a loader takes either."""
LEFT_OUT = ["checkpoints/*", "*.partial", "*.part"]


def check(repo_id: str, token: str | None) -> None:
    """Nothing, if the name can be one, and somebody is logged in; before hours of work.

    Raises HubError that says what is wrong and the way out.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise HubError(f'push_to_hub: "{repo_id}" cannot be the name of a repository: {_first_line(error)}') from error
    if constants.is_offline_mode():
        raise HubError(f"push_to_hub: {repo_id}: HF_HUB_OFFLINE is set. Unset it to push.")
    if token is None and get_token() is None:
        raise HubError(
            f"push_to_hub: {repo_id}: nobody is logged in. Run `hf auth login`, set HF_TOKEN, or pass token=."
        )


def upload(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
) -> str:
    """Puts the files of a folder into a repository, which is made if it is not there; returns the commit's address.

    `private` is for a new repository; None: as its owner's settings say. `revision` is a branch, made if it is not
    there. The card gets the repository's name. Raises HubError if the hub refuses, or cannot be reached.
    """
    from httpx2 import HTTPError
    from huggingface_hub import HfApi

    check(repo_id, token)
    api = HfApi(token=token)
    message = commit_message or "An encoder made with bothways"
    try:
        repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        with _named(folder, repo) as staged:
            commit = api.upload_folder(
                repo_id=repo,
                folder_path=staged,
                revision=revision,
                commit_message=message,
                delete_patterns=STALE,
                ignore_patterns=list(LEFT_OUT),
            )
    except (HTTPError, OSError, ValueError, RuntimeError) as error:  # the last is of a file that did not arrive
        raise HubError(f"push_to_hub: {repo_id}: {_reason(error, api.endpoint)}") from error
    return str(commit.commit_url)


@contextmanager
def _named(folder: Path, repo: str) -> Iterator[Path]:
    """A folder of links to the same files, with a card that names the repository."""
    with tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary) / "encoder"
        shutil.copytree(folder.resolve(), staged, copy_function=os.symlink)
        card = staged / CARD
        if card.exists():
            text = card.read_text(encoding="utf-8")
            card.unlink()
            card.write_text(text.replace(PLACEHOLDER, repo), encoding="utf-8")
        yield staged


def _reason(error: Exception, endpoint: str) -> str:
    from httpx2 import TransportError

    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return "the hub does not know the token. Run `hf auth login` again, or pass another token=."
    if status == 403:
        return f"the token may not write there. Use one with the right to write. ({_first_line(error)})"
    if status is None and isinstance(error, TransportError | ConnectionError):
        return f"{endpoint} cannot be reached ({_first_line(error)}). Try again where there is a network."
    return f"{_first_line(error)}"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
