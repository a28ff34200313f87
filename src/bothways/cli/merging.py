"""`bothways merge ENC ENC ... --out DIR`: folders in, a folder out."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import OmitArgPrefixes, Positional

from bothways.cli.options import Opening, misused, open_encoder, quiet, say
from bothways.stages.merge_settings import Merge


def merge(
    encoders: Positional[tuple[str, ...]],
    settings: OmitArgPrefixes[Merge],
    opening: OmitArgPrefixes[Opening],
    out: Path,
    base: str | None = None,
) -> None:
    """Merge encoders of one origin into one.

    Args:
        encoders: Folders of encoders, two or more, made from one decoder with the same settings.
        out: Folder of the merged encoder; must not exist yet.
        base: Folder of the encoder that all of them were trained from: their differences to it are merged.
    """
    twice = [name for number, name in enumerate(encoders) if name in encoders[:number]]
    if twice:
        misused(f"merge: {twice[0]} is named twice. Name it once, and give it more of --weights.")
    settings.shares(len(encoders), anchored=base is not None)
    # Here and not above, so that --help and wrong usage answer at once: torch takes seconds to import.
    from bothways.folders import refuse_taken
    from bothways.stages.merge import merge as merge_all
    from bothways.stages.merge import refuse_checkpoints

    refuse_taken(out)
    for name in (*encoders, *([] if base is None else [base])):
        refuse_checkpoints(name)
    quiet()
    anchor = None if base is None else open_encoder(base, opening)
    merged = merge_all({name: open_encoder(name, opening) for name in encoders}, settings, base=anchor)
    merged.save_pretrained(out)
    if merged.record.certificate is not None:
        say(merged.record.certificate.summary())
    say(f"merge: written to {out}")
