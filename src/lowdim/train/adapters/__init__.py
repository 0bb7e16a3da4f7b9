"""Sparse training inside other people's training loops."""
