"""The algebra: patterns, scores, allocations, masks, budgets, statistics. Knows tensors, not models."""
