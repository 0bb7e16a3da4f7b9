"""Whole runs of sparse training from a recipe: the sparse network and the twins it is measured against."""
