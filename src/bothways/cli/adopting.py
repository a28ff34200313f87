"""`bothways adopt NAME --adapter A B --out DIR`: an encoder that others made, as a folder of our own."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import OmitArgPrefixes, Positional

from bothways.cli.options import Opening, Sources, flat, quiet, say


def adopt(
    name: Positional[str],
    opening: OmitArgPrefixes[Opening],
    out: Path,
    adapter: Sources = (),
    base: str | None = None,
    without_mntp: bool = False,
) -> None:
    """Merge what others made (llm2vec's checkpoints, sentence-transformers folders, LoRA adapters) into one folder.

    Args:
        name: Folder or hub id of an encoder, a decoder, or an adapter that names its base.
        out: Folder of the encoder; must not exist yet.
        adapter: Folders or hub ids of LoRA adapters that are merged on top, in this order.
        base: What the adapter in NAME was trained on, if that is not where it says.
        without_mntp: Take an adapter that was trained after MNTP, though no MNTP stage is seen under it.
    """
    from bothways.encoder import Encoder
    from bothways.folders import refuse_taken

    refuse_taken(out)
    quiet()
    encoder = Encoder.from_pretrained(
        name, adapter=flat(adapter), base=base, without_mntp=without_mntp, **vars(opening)
    )
    encoder.save_pretrained(out)
    if encoder.record.certificate is not None:
        say(encoder.record.certificate.summary())
    say(f"adopt: {encoder.record.described}, written to {out}")
