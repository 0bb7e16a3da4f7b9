"""Choosing samples: ranks of samples within their class, and what groups they make."""
