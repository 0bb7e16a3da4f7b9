"""Recipes: what to prune and how, as YAML, as flags and as a checked object. Costs no import of torch."""

from lowdim.core.recipe import read
from lowdim.prune.presets import METHODS
from lowdim.prune.recipe.schema import Calibration, Evaluation, Recipe, Targets

__all__ = ["METHODS", "Calibration", "Evaluation", "Recipe", "Targets", "read"]
