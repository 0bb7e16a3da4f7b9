"""The sheet of a ranking: the most and the least spurious samples of every class."""
