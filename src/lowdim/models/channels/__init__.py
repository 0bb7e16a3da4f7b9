"""Whole channels: which of them can be taken out of a network, and the smaller network that is left."""
