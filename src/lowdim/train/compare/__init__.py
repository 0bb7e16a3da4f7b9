"""Whole runs of sparse training from a recipe: the sparse network and the twins it is measured against."""

TITLES = {
    "early": "First network",
    "dense": "Dense",
    "small": "Small dense",
    "static": "Static",
    "resampled": "Resampled",
    "sparse": "Sparse",
}
"""The networks of a run by their roles: what is trained before all, twins, what the recipe asks for."""
