"""The command line: one thin file per command. A recipe is checked before torch is imported."""

from lowdim.cli.app import app, main

__all__ = ["app", "main"]
