"""Masks drawn before training, and lottery tickets found by training."""
