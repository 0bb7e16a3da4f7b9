"""The page of a stress: every hard task over a grid of sparsities."""
