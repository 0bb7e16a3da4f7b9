"""Reading plans."""

from __future__ import annotations


def changes(plan):
    """Return (step, factor) wherever the rate changes."""
    rates = [plan.lr_factor(step) for step in range(plan.total_steps)]
    return [(step, rates[step]) for step in range(1, len(rates)) if rates[step] != rates[step - 1]]
