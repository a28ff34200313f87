"""Texts -> a folder of vectors in Parquet, and exact search in it."""

from bothways.corpus.embed import embed, refuse_taken
from bothways.corpus.search import Corpus, Hit, search

__all__ = ["Corpus", "Hit", "embed", "refuse_taken", "search"]
