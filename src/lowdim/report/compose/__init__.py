"""The page of a composition."""
