"""The page of a pruning run."""
