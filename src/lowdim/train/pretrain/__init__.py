"""Causal language models trained from nothing, or on, from one recipe: text in, a stock Hugging Face directory out."""
