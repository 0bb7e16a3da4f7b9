"""What a network is made of, told by its structure, and which of it can become sparse."""
