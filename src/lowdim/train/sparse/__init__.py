"""The engine of sparse training: layers, masks, how they move."""
