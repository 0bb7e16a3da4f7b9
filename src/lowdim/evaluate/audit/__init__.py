"""Whole experiments on one model: essential sparsity, Junk DNA, dropped blocks."""
