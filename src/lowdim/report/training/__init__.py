"""The page of a sparse training run."""
