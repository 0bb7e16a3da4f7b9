"""Models that were trained or pruned before, trained on answers or on preferences."""
