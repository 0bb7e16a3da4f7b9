"""Recipes of any kind: YAML, strict sections, methods by name. Costs no import of torch."""

from lowdim.core.recipe.base import Count, Document, Section, Seed, Share, Strings, read
from lowdim.core.recipe.families import method_field

__all__ = ["Count", "Document", "Section", "Seed", "Share", "Strings", "method_field", "read"]
