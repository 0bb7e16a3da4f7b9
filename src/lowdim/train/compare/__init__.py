"""Whole runs of sparse training from a recipe: the sparse network and the twins it is measured against."""

TITLES = {
    "dense": "Dense",
    "small": "Small dense",
    "static": "Static",
    "resampled": "Resampled",
    "sparse": "Sparse",
}
"""The networks of a run by their roles, twins first."""
