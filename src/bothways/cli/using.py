"""`bothways evaluate` and `bothways encode`: what a finished encoder is for."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import OmitArgPrefixes, Positional

from bothways.cli import tables
from bothways.cli.options import Opening, Paths, flat, misused, open_encoder, quiet, say
from bothways.data import OnBadRow


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


def encode(
    encoder: Positional[str],
    file: Positional[Path],
    opening: OmitArgPrefixes[Opening],
    out: Path,
    tokens_per_batch: int | None = None,
    on_bad_row: OnBadRow = "raise",
) -> None:
    """Write texts, ids and vectors of a file as Parquet.

    Args:
        encoder: Folder of the encoder.
        file: Texts: .txt; .jsonl of strings or of objects with "text", and "_id" or "id" if there are ids; .csv, .tsv
            or .parquet with columns of these names. All but .parquet may be .gz.
        out: Folder for vectors.parquet; must be empty or not exist yet.
        tokens_per_batch: Tokens that go through the model at once, if not what is fast on the device; changes speed and
            memory, never a vector.
        on_bad_row: raise: stop at a row that cannot be used; skip: count it, list it, go on.
    """
    from bothways.corpus import embed
    from bothways.data import read_documents
    from bothways.folders import refuse_taken

    refuse_taken(out)
    documents = read_documents(file, on_bad_row)
    quiet()
    path = embed(open_encoder(encoder, opening), documents, out, tokens_per_batch=tokens_per_batch, show_progress=True)
    say(f"encode: {len(documents):,} vectors written to {path}")
