"""`bothways mine ENC --data pairs.jsonl --corpus docs.jsonl --out triplets.jsonl`: pairs in, triplets out."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import OmitArgPrefixes, Positional

from bothways.cli.options import Opening, Paths, Sources, flat, misused, open_encoder, quiet, say
from bothways.corpus.mining import Mine, Mined
from bothways.data import OnBadRow


def mine(
    encoder: Positional[str],
    settings: OmitArgPrefixes[Mine],
    opening: OmitArgPrefixes[Opening],
    out: Path,
    data: Sources = (),
    corpus: Paths = (),
    on_bad_row: OnBadRow = "raise",
) -> None:
    """Find hard negatives of queries, to train on.

    Args:
        encoder: Folder of the encoder that finds them.
        out: File for the examples with their negatives, .jsonl; must not exist yet.
        data: Rows with "query", "positive" and, if there are any, instructions and negatives; as in supervised.
        corpus: Files of documents to choose from, as in encode; the positives are among them anyway.
        on_bad_row: raise: stop at a row that cannot be used; skip: count it, list it, go on.
    """
    if not data:
        misused("mine: --data is missing. Name one or more files of queries and positives.")
    if out.suffix != ".jsonl":
        misused(f"mine: --out {out}: expected a name that ends in .jsonl.")
    from bothways.corpus import mine as find
    from bothways.corpus import write_examples
    from bothways.data import as_source, join, read_documents, read_examples
    from bothways.folders import refuse_taken_file

    refuse_taken_file(out)
    examples = join(read_examples(as_source(item), on_bad_row) for item in flat(data))
    documents = [document.text for path in flat(corpus) for document in read_documents(path, on_bad_row)]
    quiet()
    mined = find(open_encoder(encoder, opening), examples, documents, settings, show_progress=True)
    write_examples(mined.examples, out)
    for line in _summary(mined, settings):
        say(f"mine: {line}")
    say(f"mine: {len(mined.examples):,} examples written to {out}")


def _summary(mined: Mined, settings: Mine) -> list[str]:
    lines = [f"{mined.negatives:,} negatives of {mined.queries:,} queries, out of {mined.candidates:,} documents"]
    if mined.short or mined.bare:
        lines.append(
            f"{mined.short:,} queries have fewer than {settings.num_negatives}, {mined.bare:,} have none: a larger "
            "corpus or range_max, or smaller margins, would give more"
        )
    if mined.cosines is not None:
        positive, negative = mined.cosines
        lines.append(f"mean cosine to the queries: positives {positive:.3f}, negatives {negative:.3f}")
    return lines
