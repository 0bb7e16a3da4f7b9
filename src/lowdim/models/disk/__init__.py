"""Models on disk: sources, checkpoints, packed files."""
