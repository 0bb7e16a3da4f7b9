"""How well a model does: perplexity, tasks, how far two models differ."""
