"""Feature selection by sparse training."""
