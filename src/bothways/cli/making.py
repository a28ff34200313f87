"""`bothways convert`, `bothways run` and `bothways demo`: encoders from decoders."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import OmitArgPrefixes, Positional

from bothways.cli import tables
from bothways.cli.options import quiet, say
from bothways.stages.convert import Convert


def convert(decoder: Positional[str], settings: OmitArgPrefixes[Convert], out: Path) -> None:
    """Make an untrained encoder of a decoder.

    Args:
        decoder: Folder or hub id of a decoder-only model, or "embedded" for the one that comes with bothways.
        out: Folder of the encoder; must not exist yet.
    """
    from bothways.folders import refuse_taken
    from bothways.stages.convert import convert as make

    refuse_taken(out)
    quiet()
    encoder = make(decoder, settings)
    encoder.save_pretrained(out)
    certificate = encoder.record.certificate
    if certificate is not None:
        say(f"{certificate.summary()} ({certificate.seconds:.1f} s)")
    say(f"convert: written to {out}")


def run(recipe: Positional[Path], out: Path) -> None:
    """Run a recipe: skip the stages that are done, resume the one that was interrupted.

    Args:
        recipe: YAML file with base, convert, stages and evaluate.
        out: Folder of the run; each stage gets a folder of its own in it.
    """
    from bothways.recipe import read
    from bothways.recipe import run as run_recipe
    from bothways.training.processes import place

    checked = read(recipe)
    quiet()
    rows = run_recipe(checked, out)
    if rows and place().main:
        tables.show(f"{recipe.stem}: scores after every stage", rows)


def demo(out: Path | None = None) -> None:
    """Train an encoder of this machine's documentation, offline.

    Args:
        out: Folder for the encoder and the encoded documentation; a temporary one if not given.
    """
    from bothways import demo as room

    quiet()
    room.run(out)
