"""Sparse, low-rank, cheap neural networks, measured on your own machine."""
