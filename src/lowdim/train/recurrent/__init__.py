"""Sparse training of recurrent networks."""
