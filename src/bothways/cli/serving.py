"""`bothways serve`: an encoder behind HTTP."""

from __future__ import annotations

import logging
import os
import sys

from tyro.conf import OmitArgPrefixes, Positional

from bothways.cli.options import Opening, open_encoder, quiet, say
from bothways.errors import ConfigError
from bothways.serve import Serve

PACKAGES = ("fastapi", "prometheus_client", "pydantic", "starlette", "uvicorn")
"""What the server needs beside the encoder."""


def serve(encoder: Positional[str], settings: OmitArgPrefixes[Serve], opening: OmitArgPrefixes[Opening]) -> None:
    """Serve an encoder over HTTP as OpenAI's embeddings, until Ctrl-C or SIGTERM.

    Args:
        encoder: Folder of the encoder, or a hub id.
    """
    try:
        from bothways.serve import server
    except ModuleNotFoundError as problem:
        if (problem.name or "").partition(".")[0] not in PACKAGES:
            raise
        raise ConfigError(f"serve needs {problem.name}: pip install 'bothways[serve]'.") from None
    quiet()
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    if not server.run(encoder, settings, lambda: open_encoder(encoder, opening), lambda line: say(f"serve: {line}")):
        # A thread within torch would be torn down with the interpreter, and abort the process.
        os._exit(0)
