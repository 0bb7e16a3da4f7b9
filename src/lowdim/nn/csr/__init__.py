"""Layers that hold and multiply only the weights that are kept."""
