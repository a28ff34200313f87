"""What each stage minimises: pure functions from hidden states or vectors to one number."""

from bothways.training.losses.contrastive import LearnableTemperature, info_nce
from bothways.training.losses.distil import FEWEST_TEXTS, cosine_distance, similarity_kl
from bothways.training.losses.graded import bixse, cosent
from bothways.training.losses.tokens import FEWEST_ROWS, LOGITS_PER_CHUNK, rows_per_chunk, token_cross_entropy
from bothways.training.losses.wrappers import matryoshka, spread_out

__all__ = [
    "FEWEST_ROWS",
    "FEWEST_TEXTS",
    "LOGITS_PER_CHUNK",
    "LearnableTemperature",
    "bixse",
    "cosent",
    "cosine_distance",
    "info_nce",
    "matryoshka",
    "rows_per_chunk",
    "similarity_kl",
    "spread_out",
    "token_cross_entropy",
]
