"""Building blocks that anyone may put into a network."""
