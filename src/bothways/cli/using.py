"""`bothways evaluate`: how good a finished encoder is."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import OmitArgPrefixes, Positional

from bothways.cli import tables
from bothways.cli.options import Opening, Paths, flat, misused, open_encoder, quiet


def evaluate(
    encoders: Positional[tuple[str, ...]],
    opening: OmitArgPrefixes[Opening],
    tasks: Paths = (),
    json: Path | None = None,
) -> None:
    """Measure encoders on local tasks, tf-idf beside them.

    Args:
        encoders: Folders of encoders.
        tasks: Files of scored pairs (.jsonl) and folders in BEIR layout; more than one may follow.
        json: File to write the figures to.
    """
    if not encoders:
        misused("evaluate: no encoder. Name one or more folders.")
    if not tasks:
        misused("evaluate: --tasks is missing. Name files of scored pairs or folders in BEIR layout.")
    from bothways.evaluation import compare, read_task
    from bothways.evaluation.tables import write_json
    from bothways.provenance import versions

    # Every task first: a mistake in the last one should not cost the measurements before it.
    read = [read_task(path) for path in flat(tasks)]
    quiet()
    rows = compare({name: open_encoder(name, opening) for name in encoders}, read)
    tables.show("Scores", rows)
    if json is not None:
        write_json(json, {"versions": versions(), "rows": rows})
