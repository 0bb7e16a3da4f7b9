"""Walking through a model block by block, and what flows between them."""
