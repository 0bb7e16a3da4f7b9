"""The compiled kernels, seen from Python."""
