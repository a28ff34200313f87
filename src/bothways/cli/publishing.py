"""`bothways push`: an encoder to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import OmitArgPrefixes, Positional

from bothways.cli.options import Opening, open_encoder, quiet, say


def push(
    folder: Positional[Path],
    repo: Positional[str],
    opening: OmitArgPrefixes[Opening],
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
) -> None:
    """Put an encoder's folder on the hub, after its certificate was measured again.

    Args:
        folder: Folder of an encoder.
        repo: Repository, OWNER/NAME; made if it is not there.
        private: A new repository is one that only its owner sees; otherwise it is as the owner's settings say.
        revision: Branch to push to; made if it is not there.
        message: Of the commit.
    """
    from bothways import publishing

    quiet()
    publishing.check(repo, None)
    encoder = open_encoder(folder, opening)
    if encoder.record.certificate is not None:
        say(encoder.record.certificate.summary())
    print(publishing.upload(folder, repo, private=private or None, revision=revision, commit_message=message))
