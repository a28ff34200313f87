"""Texts -> a folder of vectors in Parquet, exact search in it, and hard negatives out of it."""

from bothways.corpus.encode import Encoded, encode
from bothways.corpus.exact import Corpus, Hit, search
from bothways.corpus.job import Encode
from bothways.corpus.mining import Mine, Mined, mine, write_examples
from bothways.corpus.parquet import embed

__all__ = [
    "Corpus",
    "Encode",
    "Encoded",
    "Hit",
    "Mine",
    "Mined",
    "embed",
    "encode",
    "mine",
    "search",
    "write_examples",
]
