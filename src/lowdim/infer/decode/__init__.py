"""Generating text: backends, sampling, the native engine."""
