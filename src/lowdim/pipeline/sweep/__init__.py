"""A grid of runs of any command: expanded, checked, run, found again, and put into one table."""
