"""How masks and four-bit weights lie in memory."""
