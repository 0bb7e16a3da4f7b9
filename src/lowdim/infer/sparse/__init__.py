"""Packed weights and the layers that multiply with them."""
