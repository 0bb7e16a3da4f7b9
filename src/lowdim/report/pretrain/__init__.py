"""The page of a pre-training."""
