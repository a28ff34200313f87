"""Recipes: a YAML file that says how an encoder is made, stage by stage, and the runner that makes it."""

from bothways.recipe.ablate import Ablation, ablate
from bothways.recipe.reader import MergeStep, Recipe, Step, read
from bothways.recipe.run import run

__all__ = ["Ablation", "MergeStep", "Recipe", "Step", "ablate", "read", "run"]
