"""Texts -> a folder of vectors in Parquet, and exact search in it."""

from bothways.corpus.exact import Corpus, Hit, search
from bothways.corpus.parquet import embed

__all__ = ["Corpus", "Hit", "embed", "search"]
