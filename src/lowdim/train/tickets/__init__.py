"""Tickets: snapshots of sparse networks, and ways to make one model, or an ensemble, of many."""
