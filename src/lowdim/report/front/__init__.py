"""The page of a front: perplexity against what a form costs."""
