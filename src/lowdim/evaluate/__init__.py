"""What a model can do: perplexity and zero-shot tasks, each with its protocol and its error bar."""
