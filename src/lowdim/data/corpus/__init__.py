"""Much text: documents one at a time, a split that keeps equal ones together, and their tokens on disk."""
