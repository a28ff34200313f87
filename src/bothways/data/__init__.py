"""Files, folders, patterns and data sets of the hub -> texts, examples and documents.

`formats` and `hub` give raw rows with their places, `rows` says what a row means, `sources` where rows come from and
with which weight, and `reading` joins them. Every bad row is a `DataError` that names the file and the row.
"""

from bothways.data.formats import ROWS, TEXTS
from bothways.data.reading import (
    OnBadRow,
    Origin,
    Rows,
    Tally,
    Texts,
    join,
    origins_of,
    read_documents,
    read_examples,
    read_rows,
    read_texts,
)
from bothways.data.rows import (
    TEXT,
    Document,
    Example,
    RowError,
    document_parser,
    field_text,
    fingerprint,
    row_field,
    row_id,
    row_text,
)
from bothways.data.sources import KEYS, Policy, Source, as_source, below

__all__ = [
    "KEYS",
    "ROWS",
    "TEXT",
    "TEXTS",
    "Document",
    "Example",
    "OnBadRow",
    "Origin",
    "Policy",
    "RowError",
    "Rows",
    "Source",
    "Tally",
    "Texts",
    "as_source",
    "below",
    "document_parser",
    "field_text",
    "fingerprint",
    "join",
    "origins_of",
    "read_documents",
    "read_examples",
    "read_rows",
    "read_texts",
    "row_field",
    "row_id",
    "row_text",
]
