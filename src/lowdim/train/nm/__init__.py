"""Masks in training that are given: fixed, adaptive, N:M."""
