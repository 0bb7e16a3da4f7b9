"""Walking through a model: its blocks, layers and what flows between them."""
